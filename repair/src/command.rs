//! The docker commands of a repair, as argument vectors: what a reviewer is shown is what the worker runs.

/// What follows `docker`, before the stack's directory,
pub const COMPOSE: [&str; 2] = ["compose", "--project-directory"];
/// and after it.
pub const PLAIN: [&str; 4] = ["--progress", "plain", "--ansi", "never"];
/// What is built is described on standard input, since the description may hold secrets.
pub const FROM_STDIN: [&str; 2] = ["-f", "-"];

/// Builds one service.
pub fn build(service: &str) -> [&str; 2] {
    ["build", service]
}

/// Starts one more container of a service: no port, no alias, no other service.
pub fn run_beside<'a>(service: &'a str, name: &'a str) -> [&'a str; 6] {
    ["run", "-d", "--no-deps", "--name", name, service]
}

/// Brings one service to what its file and its tag say: no other service, no build, no pull.
pub fn up(service: &str, start: bool) -> [&str; 7] {
    let mode = if start { "-d" } else { "--no-start" };
    ["up", mode, "--no-deps", "--no-build", "--pull", "never", service]
}
