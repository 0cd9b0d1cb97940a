//! The pages that list what the code has list all of it, and nothing else.

use std::{fs, path::PathBuf};

use cooper_common::{
    config::{Default as SettingDefault, Kind, Role, SETTINGS, Setting},
    error::{self, Code},
};

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Cells of the rows beneath a heading whose first cell is quoted, up to the next heading.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (exact, with_text) = (heading.to_owned(), format!("{heading}: "));
    let lines = page.lines().skip_while(|line| *line != exact && !line.starts_with(&with_text)).skip(1);
    let rows = lines.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with("| `"));
    let cells = |row: &str| {
        let inside = row.strip_prefix('|').and_then(|row| row.strip_suffix('|')).expect("a whole row");
        inside.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(cells).collect()
}

/// What stands in the first backticks.
fn quoted(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or_default()
}

#[test]
fn every_error_code_is_on_its_page_with_its_kind() {
    let kind = |code: &Code| match code.kind() {
        error::Kind::Invalid => "invalid",
        error::Kind::NotFound => "not found",
        error::Kind::Conflict => "conflict",
        error::Kind::Unauthenticated => "unauthenticated",
        error::Kind::Forbidden => "forbidden",
        error::Kind::Exhausted => "exhausted",
        error::Kind::Unavailable => "unavailable",
        error::Kind::Timeout => "timeout",
        error::Kind::Internal => "internal",
    };
    let listed: Vec<(String, String)> = rows(&read("docs/errors.md"), "## Codes")
        .iter()
        .map(|row| (quoted(&row[0]).to_owned(), row[1].clone()))
        .collect();
    let known: Vec<(String, String)> =
        Code::ALL.iter().map(|code| (code.as_str().to_owned(), kind(code).to_owned())).collect();
    assert_eq!(listed, known, "docs/errors.md and common/src/error.rs, in the same order");
}

#[test]
fn every_setting_is_on_its_page_as_the_table_has_it() {
    let listed = rows(&read("docs/configuration.md"), "## Settings");
    let known: Vec<Vec<String>> = SETTINGS.iter().map(row_of).collect();
    for (listed, known) in listed.iter().zip(&known) {
        assert_eq!(listed, known, "docs/configuration.md and common/src/config/table.rs, in the same order");
    }
    assert_eq!(listed.len(), known.len(), "docs/configuration.md lists every setting");
}

fn row_of(setting: &Setting) -> Vec<String> {
    // Commands have no flags but the global `--data` and `--url`.
    let by_flag = setting.kind != Kind::Secret && (setting.roles != [Role::Client] || setting.key == "url");
    let flag = if by_flag { format!("`--{}`", setting.key.replace('_', "-")) } else { "none".to_owned() };
    let names = setting.env.iter().copied().chain(setting.port_env);
    let default = match setting.default {
        SettingDefault::Text(text) => format!("`{text}`"),
        SettingDefault::Number(number) => format!("`{number}`"),
        SettingDefault::InData(path) => format!("`{path}` in the data directory"),
        SettingDefault::SessionsOfThisMachine => "from cores and memory".to_owned(),
        SettingDefault::None => String::new(),
    };
    vec![
        format!("`{}`", setting.key),
        flag,
        names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        default,
        setting.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" "),
        setting.doc.to_owned(),
    ]
}

#[test]
fn every_limit_is_on_its_page_with_its_value() {
    let page = read("docs/limits.md");
    let mut known: Vec<(String, Vec<(String, u64)>)> = Vec::new();
    for line in read("common/src/limits.rs").lines().map(str::trim) {
        if let Some(module) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(" {")) {
            known.push((module.to_owned(), Vec::new()));
        } else if let Some(constant) = line.strip_prefix("pub const ") {
            let (name, rest) = constant.split_once(':').expect("a constant has a type");
            let (_, value) = rest.trim_end_matches(';').split_once('=').expect("a constant has a value");
            let (_, limits) = known.last_mut().expect("a constant is in a module");
            limits.push((name.to_owned(), number(value)));
        }
    }
    for (module, known) in known {
        let listed: Vec<(String, u64)> = rows(&page, &format!("## `{module}`"))
            .iter()
            .map(|row| (quoted(&row[0]).to_owned(), number(quoted(&row[1]))))
            .collect();
        assert_eq!(listed, known, "docs/limits.md and limits::{module}, in the same order");
    }
}

/// `30_000`, `8 << 20`, `24 * 3_600_000`.
fn number(text: &str) -> u64 {
    if let Some((left, right)) = text.split_once("<<") {
        return number(left) << number(right);
    }
    let factor = |text: &str| {
        let digits = text.trim().replace('_', "");
        digits.parse::<u64>().unwrap_or_else(|error| panic!("{text:?} is no number: {error}"))
    };
    text.split('*').map(factor).product()
}

/// Text of every source file beneath a directory.
fn sources(dir: &std::path::Path, found: &mut String) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn every_attempt_on_its_page_has_its_test_and_every_hostile_case_is_on_the_page() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = read("docs/isolation.md");
    let (_, part) = page.split_once("## Attempts and the tests that make them").expect("the part");
    let cases: Vec<String> = fs::read_dir(root.join("tests/hostile"))
        .expect("cases")
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".py")?.to_owned()))
        .filter(|name| name != "prelude")
        .collect();
    let mut code = String::new();
    sources(&root, &mut code);
    let shown: Vec<&str> = part
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| line.trim_end_matches('|').rsplit('|').next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    for name in &shown {
        let there = cases.iter().any(|case| case == name) || code.contains(&format!("fn {name}("));
        assert!(there, "docs/isolation.md: there is no test {name}");
    }
    for case in &cases {
        assert!(shown.contains(&&**case), "docs/isolation.md: tests/hostile/{case}.py is not there");
    }
}
