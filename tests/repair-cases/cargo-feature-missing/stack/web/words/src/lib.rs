/// What is said.
pub const WORD: &str = if cfg!(feature = "loud") { "well!" } else { "well" };
