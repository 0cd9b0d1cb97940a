//! Claims about settings.

use std::{collections::BTreeMap, fs};

use super::*;

struct Scene {
    dir: tempfile::TempDir,
    role: Role,
    flags: BTreeMap<&'static str, String>,
    env: BTreeMap<&'static str, String>,
    config_file: Option<PathBuf>,
}

fn scene(role: Role) -> Scene {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let env = BTreeMap::from([("COOPER_DATA", dir.path().display().to_string())]);
    Scene { dir, role, flags: BTreeMap::new(), env, config_file: None }
}

impl Scene {
    fn flag(mut self, key: &'static str, value: &str) -> Self {
        self.flags.insert(key, value.to_owned());
        self
    }
    fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }
    fn file(self, text: &str) -> Self {
        fs::write(self.dir.path().join("cooper.toml"), text).expect("written");
        self
    }
    fn resolve(&self) -> Result<Config> {
        resolve(&Sources {
            role: self.role,
            flags: self.flags.clone(),
            config_file: self.config_file.clone(),
            env: &|name| self.env.get(name).cloned(),
        })
    }
    fn refused(&self) -> Error {
        let error = self.resolve().expect_err("must be refused");
        assert_eq!(error.code, Code::ConfigInvalid);
        error
    }
}

fn max_sessions(scene: Scene) -> (u64, Origin) {
    let config = scene.resolve().expect("resolves");
    (
        config.integer("max_sessions").expect("a number"),
        config.get("max_sessions").expect("there").origin.clone(),
    )
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let (_, origin) = max_sessions(scene(Role::Worker));
    assert_eq!(origin, Origin::Default);

    let with_file = || scene(Role::Worker).file("max_sessions = 3\n");
    let (value, origin) = max_sessions(with_file());
    assert!(matches!((value, &origin), (3, Origin::File(path)) if path.ends_with("cooper.toml")));

    let with_env = || with_file().env("MAX_SESSIONS", "4");
    assert_eq!(max_sessions(with_env()), (4, Origin::Env("MAX_SESSIONS")));
    assert_eq!(max_sessions(with_env().flag("max_sessions", "5")), (5, Origin::Flag("max_sessions")));
}

#[test]
fn an_empty_variable_counts_as_absent() {
    assert_eq!(max_sessions(scene(Role::Worker).env("MAX_SESSIONS", "")).1, Origin::Default);
}

#[test]
fn grpc_port_is_the_port_of_listen_on_a_coordinator_and_of_health_on_a_worker() {
    let config = scene(Role::Coordinator)
        .env("COOPER_LISTEN", "0.0.0.0:1")
        .env("GRPC_PORT", "6000")
        .resolve()
        .expect("ok");
    assert_eq!(config.address("listen"), "0.0.0.0:6000".parse().ok());
    assert_eq!(config.get("listen").expect("there").origin, Origin::Env("GRPC_PORT"));

    let config = scene(Role::Coordinator)
        .flag("listen", "127.0.0.1:7")
        .env("GRPC_PORT", "6000")
        .resolve()
        .expect("ok");
    assert_eq!(config.address("listen"), "127.0.0.1:7".parse().ok());

    let config = scene(Role::Worker).env("GRPC_PORT", "6000").resolve().expect("ok");
    assert_eq!(config.integer("health_port"), Some(6000));
    assert!(config.get("listen").is_none());
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_the_nearest_key() {
    let error = scene(Role::Coordinator).file("max_session = 3\n").refused();
    assert!(error.message.contains("cooper.toml") && error.message.contains("max_session"), "{error:?}");
    assert!(error.hint().contains("max_sessions"), "{error:?}");
}

#[test]
fn a_bad_value_is_named_with_its_setting_and_origin() {
    for (scene, words) in [
        (scene(Role::Worker).env("MAX_SESSIONS", "many"), ["max_sessions", "environment MAX_SESSIONS"]),
        (scene(Role::Worker).flag("labels", "zone"), ["labels", "flag --labels"]),
        (scene(Role::Worker).file("max_sessions = -1"), ["max_sessions", "cooper.toml"]),
        (scene(Role::Worker).file("python = true"), ["python", "cooper.toml"]),
        (scene(Role::Coordinator).env("COOPER_LISTEN", "50051"), ["listen", "environment COOPER_LISTEN"]),
        (scene(Role::Coordinator).env("GRPC_PORT", "70000"), ["listen", "environment GRPC_PORT"]),
        (scene(Role::Coordinator).env("LOG_LEVEL", "loud"), ["log_level", "environment LOG_LEVEL"]),
        (scene(Role::Worker).env("COORDINATOR_ADDR", "ftp://x"), ["coordinator_addr", "COORDINATOR_ADDR"]),
        (scene(Role::Coordinator).file("listen = 3 x"), ["cooper.toml", "line 1"]),
    ] {
        let error = scene.refused();
        assert!(words.iter().all(|word| error.message.contains(word)), "{error:?} lacks one of {words:?}");
    }
}

#[test]
fn a_secret_is_taken_from_the_environment_only_and_never_printed() {
    let error = scene(Role::Worker).file("join_token = \"cpr_x\"").refused();
    assert!(error.hint().contains("join_token_file"));
    let config = scene(Role::Worker).env("COOPER_JOIN_TOKEN", "cpr_x").resolve().expect("ok");
    let entry = config.get("join_token").expect("there");
    assert_eq!(config.join_token().expect("a token").expose(), "cpr_x");
    assert!(!format!("{entry:?}{}{}", entry.value, entry.value.to_json()).contains("cpr_x"));
}

#[test]
fn the_join_token_comes_from_the_data_directory_unless_told_otherwise() {
    let scene = scene(Role::Worker);
    let missing = scene.resolve().expect("ok").join_token().expect_err("no file yet");
    assert!(missing.message.contains("worker.token"), "{missing:?}");
    fs::write(scene.dir.path().join("worker.token"), "cpr_y\n").expect("written");
    assert_eq!(scene.resolve().expect("ok").join_token().expect("a token").expose(), "cpr_y");
}

#[test]
fn relative_paths_in_a_file_are_relative_to_the_file() {
    let scene = scene(Role::Worker).file("base_workspace = \"work\"\n[stacks]\nshop = \"../shop\"\n");
    let config = scene.resolve().expect("ok");
    assert_eq!(config.path("base_workspace"), Some(scene.dir.path().join("work")));
    let stacks = config.pairs("stacks");
    assert!(
        stacks[0].0 == "shop" && stacks[0].1.starts_with('/') && stacks[0].1.ends_with("/../shop"),
        "{stacks:?}"
    );
}

#[test]
fn stacks_keep_their_order_because_the_first_is_the_default() {
    let config = scene(Role::Worker).env("COOPER_STACKS", "zoo=/z, api=/a").resolve().expect("ok");
    let names: Vec<_> = config.pairs("stacks").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["zoo", "api"]);
}

#[test]
fn a_named_file_must_exist_and_may_name_the_data_directory() {
    let mut scene = scene(Role::Coordinator);
    scene.env.clear();
    scene.config_file = Some(scene.dir.path().join("other.toml"));
    assert!(scene.refused().message.contains("no such file"));
    fs::write(scene.dir.path().join("other.toml"), "data = \"here\"\n").expect("written");
    assert_eq!(scene.resolve().expect("ok").data(), scene.dir.path().join("here"));
}

#[test]
fn the_file_in_the_data_directory_cannot_move_that_directory() {
    assert!(scene(Role::Client).file("data = \"/elsewhere\"").refused().message.contains("data"));
}

#[test]
fn host_and_port_become_a_url() {
    for (given, expected) in [
        ("example:50051", "http://example:50051"),
        ("https://cooper.example/", "https://cooper.example"),
        ("http://[::1]:50051", "http://[::1]:50051"),
    ] {
        let config = scene(Role::Worker).env("COORDINATOR_ADDR", given).resolve().expect("ok");
        assert_eq!(config.text("coordinator_addr").as_deref(), Some(expected));
    }
    assert!(scene(Role::Worker).env("COORDINATOR_ADDR", "example").refused().message.contains("host:port"));
}

#[test]
fn every_row_of_the_table_is_complete() {
    for (i, setting) in SETTINGS.iter().enumerate() {
        assert!(
            setting.doc.ends_with('.') && !setting.roles.is_empty() && !setting.env.is_empty(),
            "{}",
            setting.key
        );
        assert!(SETTINGS[..i].iter().all(|other| other.key != setting.key), "{} twice", setting.key);
        value::default(setting, Path::new("/data")).expect("its default is valid");
    }
}

#[test]
fn times_that_would_evict_a_healthy_worker_are_refused_together() {
    let short = |text| scene(Role::Coordinator).file(text);
    short("heartbeat_ms = 200\nlease_ms = 2000\nlost_ms = 4000\ntick_ms = 100\n").resolve().expect("fits");
    for (text, named) in [
        ("heartbeat_ms = 30000\n", "lease_ms: 30000 is not more than heartbeat_ms"),
        ("lost_ms = 30000\n", "lost_ms: 30000 is not more than lease_ms"),
        ("suspect_beats = 30\n", "lost_ms: 60000 is not more than suspect_beats"),
    ] {
        let error = short(text).refused();
        assert!(error.message.contains(named), "{text}: {}", error.message);
    }
    let error = scene(Role::Worker).env("COOPER_RECONNECT_CAP_MS", "100").refused();
    assert!(error.message.contains("from environment COOPER_RECONNECT_CAP_MS"), "{}", error.message);
    // What a worker does not read does not concern it.
    scene(Role::Worker).file("lost_ms = 1\n").resolve().expect("not its own");
}
