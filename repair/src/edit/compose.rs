//! Edits of a compose file, line by line: comments, anchors and the style of what is there stay. Only block style is
//! edited; what is written another way is left to a person.

use std::ops::Range;

use regex::Regex;

use crate::compose::change;

use super::{Error, check, splice};

/// A mapping key with what belongs to it.
struct Block {
    /// Line of the key.
    line: Range<usize>,
    /// Column of the key.
    indent: usize,
    /// What follows the colon on that line, without a comment.
    value: String,
    /// The lines that belong to it, without the key's; trailing blanks and comments are left out.
    body: Range<usize>,
}

/// A line that says something: where it is, its column, and what it says.
struct Line<'a> {
    span: Range<usize>,
    indent: usize,
    text: &'a str,
}

fn lines(text: &str, within: Range<usize>) -> impl Iterator<Item = Line<'_>> {
    let mut start = within.start;
    text[within].split_inclusive('\n').filter_map(move |raw| {
        let span = start..start + raw.len();
        start = span.end;
        let said = raw.trim();
        let says = !said.is_empty() && !said.starts_with('#') && said != "---";
        says.then(|| Line { span, indent: raw.len() - raw.trim_start().len(), text: said })
    })
}

/// `key: value # comment` apart.
fn key_of(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once(':').filter(|(_, rest)| rest.is_empty() || rest.starts_with(' '))?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    let value = if value.starts_with('#') { "" } else { value };
    Some((key.trim().trim_matches(['"', '\'']).to_owned(), value.to_owned()))
}

/// The key in a mapping that fills these lines.
fn find(text: &str, within: Range<usize>, wanted: &str) -> Option<Block> {
    let mut found: Option<Block> = None;
    let mut column = None;
    for line in lines(text, within) {
        let column = *column.get_or_insert(line.indent);
        if let Some(block) = &mut found {
            // Items of a list may stand in the column of their key.
            if line.indent > column || (line.indent == column && line.text.starts_with("- ")) {
                block.body.end = line.span.end;
                continue;
            }
            return found;
        }
        if line.indent == column
            && let Some((key, value)) = key_of(line.text)
            && key == wanted
        {
            let body = line.span.end..line.span.end;
            found = Some(Block { line: line.span, indent: column, value, body });
        }
    }
    found
}

fn service_block(text: &str, service: &str) -> Result<Block, Error> {
    let nowhere = || Error::NoPlace(format!("the compose file has no block of its own for {service}"));
    let services = find(text, 0..text.len(), "services").filter(|block| block.value.is_empty());
    let services = services.ok_or_else(nowhere)?;
    let block = find(text, services.body, service).ok_or_else(nowhere)?;
    if !(block.value.is_empty() || block.value.starts_with('&')) || block.body.is_empty() {
        return Err(nowhere());
    }
    Ok(block)
}

/// The column of the keys in a service.
fn column(text: &str, service: &Block) -> usize {
    lines(text, service.body.clone()).next().map_or(service.indent + 2, |line| line.indent)
}

fn pad(columns: usize) -> String {
    " ".repeat(columns)
}

/// Inserts whole lines; the text before them gets a line end if it lacks one.
fn insert(text: &str, at: usize, lines: &str) -> String {
    let newline = if at > 0 && !text[..at].ends_with('\n') { "\n" } else { "" };
    splice(text, at..at, &format!("{newline}{lines}"))
}

/// The text after an edit, if it changes nothing but what may change.
fn checked(service: &str, old: &str, new: String) -> Result<String, Error> {
    match change::check_text(service, old, &new).as_slice() {
        [] => Ok(new),
        reasons => Err(Error::NoPlace(reasons.join("; "))),
    }
}

pub(super) fn set_environment(old: &str, service: &str, name: &str, value: &str) -> Result<String, Error> {
    check("variable", name, "_", "_")?;
    if value.is_empty() || value.len() > 200 || value.chars().any(char::is_control) {
        return Err(Error::Invalid { what: "value", value: value.chars().take(80).collect() });
    }
    // A dollar would be interpolated.
    let escaped = value.replace('$', "$$");
    let quoted = serde_json::Value::from(escaped.as_str()).to_string();
    let block = service_block(old, service)?;
    let column = column(old, &block);
    let Some(environment) = find(old, block.body.clone(), "environment") else {
        let lines = format!("{}environment:\n{}{name}: {quoted}\n", pad(column), pad(column + 2));
        return checked(service, old, insert(old, block.body.end, &lines));
    };
    if !environment.value.is_empty() {
        return Err(Error::NoPlace("environment is not written line by line".to_owned()));
    }
    let mut entries = lines(old, environment.body.clone());
    let first = entries.next();
    let is_list = first.as_ref().is_some_and(|line| line.text.starts_with("- "));
    let inner = first.map_or(column + 2, |line| line.indent);
    let entry = match is_list {
        true => format!("{}- {}\n", pad(inner), serde_json::Value::from(format!("{name}={escaped}"))),
        false => format!("{}{name}: {quoted}\n", pad(inner)),
    };
    let known = lines(old, environment.body.clone()).filter(|line| line.indent == inner).find_map(|line| {
        let (key, value) = match line.text.strip_prefix("- ") {
            Some(item) => {
                let item = item.trim().trim_matches(['"', '\'']);
                let (key, value) = item.split_once('=').unwrap_or((item, ""));
                (key.to_owned(), value.to_owned())
            }
            None => key_of(line.text)?,
        };
        (key == name).then_some((line.span, value))
    });
    let new = match known {
        Some((span, value)) if matches!(value.as_str(), "" | "''" | "\"\"" | "null" | "~") => {
            splice(old, span, &entry)
        }
        Some(_) => return Err(Error::NoEffect(name.to_owned())),
        None => insert(old, environment.body.end, &entry),
    };
    checked(service, old, new)
}

pub(super) fn move_port(old: &str, service: &str, from: u16, to: u16) -> Result<String, Error> {
    let block = service_block(old, service)?;
    let nowhere = || Error::NoPlace(format!("the compose file does not publish port {from} in one place"));
    let ports = find(old, block.body, "ports").ok_or_else(nowhere)?;
    let within = ports.line.start..ports.body.end;
    // `8080:80`, `127.0.0.1:8080:80`, and `published: 8080` of the long form.
    let pattern = format!(r#"(?:published:\s*["']?|[\s"'\[,:])({from})(?::\d|["']?\s*(?:#.*)?$)"#);
    let pattern = Regex::new(&format!("(?m){pattern}")).map_err(|_| nowhere())?;
    let is_host = |found: &regex::Captures<'_>| {
        let whole = &found[0];
        whole.starts_with("published") || whole.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with(':')
    };
    let found: Vec<Range<usize>> = pattern
        .captures_iter(&old[within.clone()])
        .filter(is_host)
        .filter_map(|found| found.get(1).map(|number| number.range()))
        .collect();
    let [number] = found.as_slice() else { return Err(nowhere()) };
    let span = within.start + number.start..within.start + number.end;
    checked(service, old, splice(old, span, &to.to_string()))
}

pub(super) fn wait_until_healthy(old: &str, service: &str, on: &str) -> Result<String, Error> {
    check("service", on, "", "-_.")?;
    let block = service_block(old, service)?;
    let column = column(old, &block);
    let condition = |name: &str| if name == on { "service_healthy" } else { "service_started" };
    let Some(depends) = find(old, block.body.clone(), "depends_on") else {
        let lines = format!(
            "{}depends_on:\n{}{on}:\n{}condition: service_healthy\n",
            pad(column),
            pad(column + 2),
            pad(column + 4)
        );
        return checked(service, old, insert(old, block.body.end, &lines));
    };
    let entry = |name: &str| {
        format!("{}{name}:\n{}condition: {}\n", pad(column + 2), pad(column + 4), condition(name))
    };
    let plain = |name: &str| name.trim().trim_matches(['"', '\'']).to_owned();
    // `[a, b]` and a list become a mapping, for only that has conditions.
    if let Some(names) = depends.value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let mut names: Vec<String> = names.split(',').map(plain).filter(|name| !name.is_empty()).collect();
        if !names.iter().any(|name| name == on) {
            names.push(on.to_owned());
        }
        let lines: String = names.iter().map(|name| entry(name)).collect();
        let lines = format!("{}depends_on:\n{lines}", pad(column));
        return checked(service, old, splice(old, depends.line, &lines));
    }
    if !depends.value.is_empty() {
        return Err(Error::NoPlace("depends_on is not written line by line".to_owned()));
    }
    let entries: Vec<Line<'_>> = lines(old, depends.body.clone()).collect();
    if entries.first().is_some_and(|line| line.text.starts_with("- ")) {
        let mut new = old.to_owned();
        let missing = !entries.iter().any(|line| plain(item(line.text).0) == on);
        if missing {
            new = insert(&new, depends.body.end, &entry(on));
        }
        for line in entries.iter().rev() {
            let (name, comment) = item(line.text);
            let name = plain(name);
            let key = format!("{}{name}:{comment}\n", pad(column + 2));
            let lines = format!("{key}{}condition: {}\n", pad(column + 4), condition(&name));
            new = splice(&new, line.span.clone(), &lines);
        }
        return checked(service, old, new);
    }
    let Some(dependency) = find(old, depends.body.clone(), on) else {
        return checked(service, old, insert(old, depends.body.end, &entry(on)));
    };
    let span = dependency.line.start..dependency.body.end;
    match old[span.clone()].find("service_started") {
        Some(at) => {
            let at = span.start + at;
            let new = splice(old, at..at + "service_started".len(), "service_healthy");
            checked(service, old, new)
        }
        None if old[span].contains("service_healthy") => {
            Err(Error::NoEffect(format!("{on}: service_healthy")))
        }
        None => Err(Error::NoPlace(format!("the condition of {on} is not written out"))),
    }
}

/// `- name # comment` apart; the comment with the blank before it.
fn item(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches("- ");
    text.find(" #").map_or((text, ""), |at| (&text[..at], &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# our shop
x-env: &env
  TZ: UTC   # everywhere

services:
  web:  # the front
    image: shop-web
    environment:
      <<: *env
      MODE: live  # not test

      EMPTY:
    ports:
      - \"127.0.0.1:8080:8080\"  # local
    depends_on:
      # first
      - db   # data
      - cache

  db:
    image: postgres
    environment: [\"A=b\"]
    depends_on: [cache]
    ports:
      - target: 5432
        published: \"5432\"
  cache:
    image: redis
";

    fn changed(new: &str) -> (Vec<String>, Vec<String>) {
        let lines = crate::diff::lines(FILE, new);
        (lines.removed, lines.added)
    }

    #[test]
    fn a_variable_is_added_where_variables_are_and_everything_else_keeps_its_bytes() {
        let new = set_environment(FILE, "web", "API_URL", "http://a/$x").unwrap();
        assert_eq!(changed(&new), (vec![], vec!["      API_URL: \"http://a/$$x\"".to_owned()]));
        let new = set_environment(FILE, "web", "EMPTY", "no").unwrap();
        assert_eq!(changed(&new), (vec!["      EMPTY:".to_owned()], vec!["      EMPTY: \"no\"".to_owned()]));
        let new = set_environment(FILE, "cache", "A", "b").unwrap();
        assert_eq!(changed(&new).1, ["    environment:", "      A: \"b\""]);
        assert!(matches!(set_environment(FILE, "web", "MODE", "x"), Err(Error::NoEffect(_))));
        assert!(matches!(set_environment(FILE, "db", "X", "y"), Err(Error::NoPlace(_))));
        assert!(matches!(set_environment(FILE, "web", "A B", "y"), Err(Error::Invalid { .. })));
        assert!(matches!(set_environment(FILE, "web", "A", "y\nz"), Err(Error::Invalid { .. })));
        assert!(matches!(set_environment(FILE, "none", "A", "y"), Err(Error::NoPlace(_))));
        let list = "services:\n  web:\n    environment:\n    - A=b\n    image: x\n";
        let new = set_environment(list, "web", "C", "d: e").unwrap();
        assert_eq!(new, list.replace("- A=b\n", "- A=b\n    - \"C=d: e\"\n"));
    }

    #[test]
    fn a_host_port_is_moved_and_the_containers_stays() {
        let new = move_port(FILE, "web", 8080, 8081).unwrap();
        assert_eq!(changed(&new).1, ["      - \"127.0.0.1:8081:8080\"  # local"]);
        let new = move_port(FILE, "db", 5432, 5433).unwrap();
        assert_eq!(changed(&new).1, ["        published: \"5433\""]);
        assert!(move_port(FILE, "web", 80, 81).is_err());
        let flow = "services:\n  web:\n    ports: [\"80:80\", \"443:443\"]\n";
        assert_eq!(move_port(flow, "web", 80, 8000).unwrap(), flow.replace("\"80:80\"", "\"8000:80\""));
    }

    #[test]
    fn a_service_waits_until_another_is_healthy() {
        let new = wait_until_healthy(FILE, "web", "db").unwrap();
        let (removed, added) = changed(&new);
        assert_eq!(removed, ["      - db   # data", "      - cache"]);
        assert_eq!(
            added,
            [
                "      db: # data",
                "        condition: service_healthy",
                "      cache:",
                "        condition: service_started"
            ]
        );
        assert!(matches!(wait_until_healthy(&new, "web", "db"), Err(Error::NoEffect(_))));
        let again = wait_until_healthy(&new, "web", "cache").unwrap();
        assert_eq!(crate::diff::lines(&new, &again).added, ["        condition: service_healthy"]);
        let new = wait_until_healthy(FILE, "db", "cache").unwrap();
        assert_eq!(changed(&new).1[1..], ["      cache:", "        condition: service_healthy"]);
        let new = wait_until_healthy(FILE, "cache", "db").unwrap();
        assert_eq!(changed(&new).1.len(), 3);
    }
}
