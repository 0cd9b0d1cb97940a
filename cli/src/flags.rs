//! Command-line flags for settings, made from the table in `cooper_common::config`.

use std::{collections::BTreeMap, marker::PhantomData};

use clap::{Arg, ArgMatches, Command, Error, FromArgMatches};
use cooper_common::config::{Default as SettingDefault, Kind, Role, SETTINGS, Setting};

/// The settings given as flags to a role, by key.
#[derive(Debug, Clone)]
pub struct Flags<R> {
    pub given: BTreeMap<&'static str, String>,
    role: PhantomData<R>,
}

pub trait OfRole {
    const ROLE: Role;
}

macro_rules! roles {
    ($($marker:ident, $flags:ident, $role:ident;)*) => {$(
        #[derive(Debug, Clone)]
        pub struct $marker;
        impl OfRole for $marker {
            const ROLE: Role = Role::$role;
        }
        pub type $flags = Flags<$marker>;
    )*};
}
roles! {
    OfUp, UpFlags, Up;
    OfCoordinator, CoordinatorFlags, Coordinator;
    OfWorker, WorkerFlags, Worker;
}

/// `data` is a flag of every command; secrets are never on a command line.
fn settings(role: Role) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |setting| {
        setting.belongs_to(role) && setting.key != "data" && setting.kind != Kind::Secret
    })
}

fn arg(setting: &'static Setting) -> Arg {
    let mut help = format!("{} [env: {}]", setting.doc.trim_end_matches('.'), setting.env.join(", "));
    match setting.default {
        SettingDefault::Text(text) => help += &format!(" [default: {text}]"),
        SettingDefault::Number(number) => help += &format!(" [default: {number}]"),
        SettingDefault::InData(rest) => help += &format!(" [default: {rest} in the data directory]"),
        SettingDefault::SessionsOfThisMachine => help += " [default: from cores and memory]",
        SettingDefault::None => {}
    }
    let name = match setting.kind {
        Kind::Path => "PATH",
        Kind::Address => "IP:PORT",
        Kind::Url => "URL",
        Kind::Integer { .. } => "N",
        Kind::LogLevel => "LEVEL",
        Kind::Pairs => "NAME=VALUE,…",
        Kind::Dirs => "NAME=DIR,…",
        _ => "VALUE",
    };
    let heading = match setting.key {
        "suspect_beats" => "Times",
        key if key.ends_with("_ms") => "Times",
        _ => "Settings",
    };
    Arg::new(setting.key)
        .long(setting.key.replace('_', "-"))
        .value_name(name)
        .help(help)
        .help_heading(heading)
}

impl<R: OfRole> clap::Args for Flags<R> {
    fn augment_args(command: Command) -> Command {
        command.args(settings(R::ROLE).map(arg))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<R: OfRole> FromArgMatches for Flags<R> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = settings(R::ROLE)
            .filter_map(|setting| Some((setting.key, matches.get_one::<String>(setting.key)?.clone())))
            .collect();
        Ok(Self { given, role: PhantomData })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
