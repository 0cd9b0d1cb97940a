//! Arguments about the files of a session.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Files {
    /// Copy a local file, or a directory with all beneath it, into the session's workspace
    Put {
        session: String,
        /// Local file or directory; - for standard input
        local: PathBuf,
        /// Path in the workspace; ending in / it is a directory to put it in [default: the local name]
        remote: Option<String>,
        /// Of a directory: into one that is there, where files of the same name are replaced
        #[arg(long)]
        overwrite: bool,
        /// Only if the file there has this etag or sha256 (`files stat`); "none": only if there is none
        #[arg(long, value_name = "ETAG|SHA256|none", default_value = "", hide_default_value = true)]
        if_match: String,
    },
    /// Copy a file of the session's workspace here, or a directory with all beneath it; a file's connection that breaks
    /// is made again and gone on with
    Get {
        session: String,
        remote: String,
        /// Local file or directory; - for standard output [default: its name, here]
        local: Option<PathBuf>,
        /// Of a directory: into one that is there, where files of the same name are replaced
        #[arg(long)]
        overwrite: bool,
    },
    /// Write a file of the session's workspace, or a part of it, to standard output
    Cat {
        session: String,
        path: String,
        /// First byte wanted
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        offset: u64,
        /// So many bytes [default: to the end]
        #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
        length: u64,
    },
    /// List a directory of the session's workspace
    Ls {
        session: String,
        path: Option<String>,
        #[command(flatten)]
        which: ListWhich,
        /// All beneath it
        #[arg(short, long)]
        recursive: bool,
    },
    /// List what matches a pattern, in a directory and all beneath it
    Find {
        session: String,
        /// `*.py`, `src/**/*.{c,h}`; without a / the name alone is matched
        glob: String,
        /// Directory to look in [default: the workspace]
        path: Option<String>,
        /// Also in directories whose name begins with a dot
        #[arg(long)]
        hidden: bool,
    },
    /// Search files for a text
    Grep {
        session: String,
        /// A regular expression (Rust's syntax)
        pattern: String,
        /// Directory or file [default: the workspace]
        path: Option<String>,
        /// The pattern is a plain text
        #[arg(short = 'F', long)]
        fixed: bool,
        #[arg(short, long)]
        ignore_case: bool,
        /// Only in files that match
        #[arg(long, default_value = "", hide_default_value = true)]
        glob: String,
        /// Also in directories whose name begins with a dot
        #[arg(long)]
        hidden: bool,
        /// Stop after so many lines
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Replace an exact text in a file
    Edit {
        session: String,
        path: String,
        /// The text as it is there
        #[arg(long, allow_hyphen_values = true)]
        old: String,
        /// What is to be there instead
        #[arg(long, allow_hyphen_values = true)]
        new: String,
        /// How often the text must be there; all are replaced
        #[arg(long, default_value_t = 1, conflicts_with = "all")]
        count: u32,
        /// Replace it wherever it is
        #[arg(long)]
        all: bool,
        /// Only if the file has this etag or sha256
        #[arg(long, value_name = "ETAG|SHA256", default_value = "", hide_default_value = true)]
        if_match: String,
    },
    /// Show what is at a path
    Stat {
        session: String,
        path: String,
        /// Also the sha256 of a file's content
        #[arg(long)]
        sha256: bool,
        /// Follow a symbolic link
        #[arg(short = 'L', long)]
        follow: bool,
    },
    /// Move or rename a file or directory
    Mv(FromTo),
    /// Copy a file, or a directory with all beneath it, within the workspace
    Cp(FromTo),
    /// Remove a file or an empty directory
    Rm {
        session: String,
        path: String,
        /// A directory with all beneath it
        #[arg(short, long)]
        recursive: bool,
        /// It is no error when nothing is there
        #[arg(short, long)]
        force: bool,
    },
    /// Make a directory, and those above it
    Mkdir {
        session: String,
        path: String,
        /// Permission bits [default: 755]
        #[arg(long, value_parser = octal, default_value = "755", hide_default_value = true)]
        mode: u32,
    },
    /// Write a directory with all beneath it to standard output or a file, as an archive
    Tar {
        session: String,
        /// Directory to pack [default: the workspace]
        path: Option<String>,
        /// Also what is in directories whose name begins with a dot
        #[arg(long)]
        hidden: bool,
        /// [default: what the name of the file ends in, or tar]
        #[arg(long, value_parser = ["tar", "tar.gz", "zip"])]
        format: Option<String>,
        /// Write it there; it is there whole or not at all
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Unpack a tar, tar.gz or zip from standard input or a file beneath a directory
    Untar {
        session: String,
        /// Directory to unpack in; made when it is not there [default: the workspace]
        path: Option<String>,
        /// [default: what it is by its first bytes]
        #[arg(long, value_parser = ["tar", "tar.gz", "zip"])]
        format: Option<String>,
        /// Read it from there
        #[arg(short = 'i', long = "input", value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Set the permission bits of a file or directory
    Chmod {
        session: String,
        /// e.g. 755
        #[arg(value_parser = octal)]
        mode: u32,
        path: String,
    },
}

#[derive(Debug, Args)]
pub struct ListWhich {
    /// Only what matches, e.g. `*.py`
    #[arg(long, default_value = "", hide_default_value = true)]
    pub glob: String,
    /// With --recursive: also what is in directories whose name begins with a dot
    #[arg(long)]
    pub hidden: bool,
    /// At most this many
    #[arg(long, default_value_t = 10_000)]
    pub limit: u32,
    /// Go on behind this: `next_cursor` of the list before
    #[arg(long, default_value = "", hide_default_value = true)]
    pub cursor: String,
}

#[derive(Debug, Args)]
pub struct FromTo {
    pub session: String,
    pub from: String,
    /// The path afterwards; ending in / it is a directory to put it in
    pub to: String,
    /// Replace the file that is there
    #[arg(long)]
    pub overwrite: bool,
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permission bits are octal, from 0 to 777".to_owned()),
    }
}
