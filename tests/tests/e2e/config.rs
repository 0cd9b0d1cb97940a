//! Settings: flag > environment > file > default, and errors that name the place.

use cooper_tests::{Answer, Cooper, Scratch};

fn setting(cooper: &Cooper, role: &str, key: &str) -> (Answer, String) {
    let shown = cooper.json(["config", "show", "--origin", "--role", role]);
    let entry = &shown["settings"][key];
    (entry["value"].clone(), entry["origin"].as_str().unwrap_or_else(|| panic!("{key}: {shown}")).to_owned())
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default() {
    let scratch = Scratch::new("config");
    let data = scratch.join("data");
    let plain = Cooper::at(&data);
    assert_eq!(setting(&plain, "up", "listen"), ("127.0.0.1:50051".into(), "default".to_owned()));

    let file = scratch.write("data/cooper.toml", "listen = \"127.0.0.1:4001\"\nmax_sessions = 7\n");
    let from_file = format!("file {}", file.display());
    assert_eq!(setting(&plain, "up", "listen"), ("127.0.0.1:4001".into(), from_file.clone()));
    assert_eq!(setting(&plain, "worker", "max_sessions"), (7.into(), from_file));

    let with_env = plain.clone().env("COOPER_LISTEN", "127.0.0.1:4002");
    assert_eq!(
        setting(&with_env, "up", "listen"),
        ("127.0.0.1:4002".into(), "environment COOPER_LISTEN".to_owned())
    );
    let with_port = with_env.env("GRPC_PORT", "4003");
    assert_eq!(
        setting(&with_port, "up", "listen"),
        ("127.0.0.1:4003".into(), "environment GRPC_PORT".to_owned())
    );

    // `--url` is the flag that `config show` itself takes.
    let url = plain.clone().env("COOPER_URL", "http://127.0.0.1:4004");
    assert_eq!(setting(&url, "client", "url").1, "environment COOPER_URL");
    let flagged =
        url.json(["--url", "http://127.0.0.1:4005", "config", "show", "--origin", "--role", "client"]);
    assert_eq!(flagged["settings"]["url"]["value"], "http://127.0.0.1:4005");
    assert_eq!(flagged["settings"]["url"]["origin"], "flag --url");
}

#[test]
fn a_key_that_does_not_exist_is_named_with_its_file_and_the_nearest_one_that_does() {
    let scratch = Scratch::new("typo");
    let file = scratch.write("settings.toml", "max_sesions = 7\n");
    let named = Cooper::at(&scratch.join("data")).env("COOPER_CONFIG", file.to_str().expect("plain"));
    for args in [vec!["config", "show"], vec!["up", "--listen", "127.0.0.1:0"]] {
        let failure = named.error(args);
        assert_eq!((failure.status, failure.code.as_str()), (1, "config_invalid"));
        let said = format!("{} {}", failure.message, failure.hint);
        for part in [file.to_str().expect("plain"), "max_sesions", "max_sessions"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn a_value_that_does_not_fit_says_where_it_comes_from() {
    let scratch = Scratch::new("value");
    let cooper = Cooper::at(&scratch.join("data")).env("MAX_SESSIONS", "many");
    let failure = cooper.error(["config", "show"]);
    assert_eq!(failure.code, "config_invalid");
    assert!(failure.message.contains("MAX_SESSIONS") && failure.message.contains("many"), "{failure:?}");
}

#[test]
fn secrets_are_never_shown() {
    let scratch = Scratch::new("secret");
    let cooper = Cooper::at(&scratch.join("data")).env("COOPER_TOKEN", "hush-hush-hush");
    for args in [
        vec!["config", "show", "--role", "client"],
        vec!["--json", "config", "show", "--origin", "--role", "client"],
    ] {
        let shown = cooper.run(args).expect(0);
        assert!(!shown.out().contains("hush") && !shown.err().contains("hush"), "{shown}");
    }
}
