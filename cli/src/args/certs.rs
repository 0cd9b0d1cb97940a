//! `cooper certs`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Certs {
    /// Make an authority, a certificate of the coordinator and one of a worker, in a new directory
    Init(CertsInit),
    /// Make one more certificate by the authority of a directory
    Issue(CertsIssue),
}

#[derive(Debug, Args)]
pub struct CertsInit {
    /// Directory to make: ca.crt ca.key server.crt server.key worker.crt worker.key
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Names and addresses by which the coordinator is reached, besides localhost; repeatable
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// How long certificates are good; the authority is for ten years
    #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

#[derive(Debug, Args)]
pub struct CertsIssue {
    /// Directory of `cooper certs init`
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Names of the files: NAME.crt and NAME.key; what is there is replaced
    #[arg(value_name = "NAME")]
    pub name: String,
    /// For a coordinator that is reached by these, besides localhost [default: for a worker]
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// How long it is good
    #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// Where to put the two files [default: DIR]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
