//! SQLite in the data directory.
