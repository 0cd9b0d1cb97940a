//! Sans-IO cores: each takes `(now, input)` and returns what to record and what to do; none does I/O, reads a clock or
//! rolls dice. The coordinator performs; simulation and property tests drive the very same code.

pub mod change;
