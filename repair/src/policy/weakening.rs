//! Changes that make a failure go away by weakening verification or security. No approval makes them right.
//!
//! What counts is not whether a line is there but whether the change brings it: the number of times a pattern occurs
//! in the text before and after, over logical lines, so that an option on a line of its own is seen with its command.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

/// What must not become more.
const MUST_NOT_GROW: &[(&str, &str)] = &[
    (
        r"trusted=yes|--allow-unauthenticated|--allow-insecure-repositories|--force-yes",
        "it accepts unsigned packages",
    ),
    (
        r"allow(?:unauthenticated|insecurerepositories|downgradetoinsecure)|check-valid-until",
        "it accepts unsigned packages",
    ),
    (r"--no-?gpg-?check|--allow-untrusted|--no-verify\b|--skip-verify", "it skips a signature check"),
    (
        r"--no-check-certificate|strict-ssl|--trusted-host|trusted-host *=|pip_trusted_host",
        "it does not check certificates",
    ),
    (r"\bcurl\b.*\s(?:-[a-z]*k[a-z]*|--insecure|--proxy-insecure)(?:\s|$)", "it does not check certificates"),
    (
        r"ssl_?no_?verify|sslverify|tls_reject_unauthorized|pythonhttpsverify|verify *= *false",
        "it does not check certificates",
    ),
    (
        r"goinsecure|gonosumcheck|gonosumdb|gosumdb *=? *off|-insecure\b",
        "it does not check what it downloads",
    ),
    (r"\|\|\s*(?::|true|/bin/true|exit 0|echo)|;\s*(?:true|exit 0)\s*$|\bset \+e", "it hides a failure"),
    (r"^\s*user\s+(?:root|0)(?::|\s|$)", "it runs as root"),
    (r"^\s*healthcheck\s+none", "it switches the healthcheck off"),
    (r"^\s*add\s+(?:--\S+\s+)*(?:https?|git|ftp)\b", "it adds a file from the network, unchecked"),
    (
        r"(?:curl|wget)\b[^|]*\|\s*(?:sudo\s+)?(?:\S*/)?(?:ba|da|z|k)?sh\b|(?:curl|wget)\b[^|]*\|\s*python",
        "it runs a script from the network",
    ),
    (r"(?:bash|sh|eval|source)\b.*(?:\$|<)\(\s*(?:curl|wget)", "it runs a script from the network"),
    (
        r"--(?:extra-)?index-url|(?:pip|uv)_(?:\w*_)?index|--default-index|--find-links|\s-i\s+http",
        "it takes packages from another index",
    ),
    (
        r"--registry|\bregistry\s*=|config set registry|add-apt-repository|^\s*deb(?:-src)? |sources\.list",
        "it takes packages from another source",
    ),
    (
        r"(?:@\s*|\s|^)(?:git\+|https?://\S+\.(?:whl|zip|tar|tgz))",
        "it installs from an address in place of an index",
    ),
    (r"chmod\s+(?:-\w+\s+)*(?:0?777|a\+rwx|[ugo]*\+s)", "it gives everybody access"),
    (
        r"--privileged|--security[= ]insecure|--network[= ]host|docker\.sock|--cap-add",
        "it breaks the isolation",
    ),
    (r"^#\s*syntax\s*=", "it builds with a front end from a registry"),
    (r"^\s*onbuild\s", "it adds a trigger to other builds"),
];

/// What must not become less.
const MUST_NOT_SHRINK: &[(&str, &str)] = &[
    (r"^\s*healthcheck\s", "it removes the healthcheck"),
    (r"^\s*user\s", "it removes the USER that drops privileges"),
    (r"--require-hashes|--hash=", "it removes a hash check"),
    (r"--checksum=|sha(?:256|512)sum|gpg\s.*--verify", "it removes a check of what is downloaded"),
];

type Table = Vec<(Regex, &'static str)>;

fn table(rows: &[(&str, &'static str)]) -> Table {
    let compile = |pattern| RegexBuilder::new(pattern).case_insensitive(true).build();
    rows.iter().map(|(pattern, what)| (compile(pattern).expect("constant and tested"), *what)).collect()
}

static GROWING: LazyLock<Table> = LazyLock::new(|| table(MUST_NOT_GROW));
static SHRINKING: LazyLock<Table> = LazyLock::new(|| table(MUST_NOT_SHRINK));

/// How a change weakens verification or security, each in a few words; empty if it does not.
pub(super) fn check(old: &str, new: &str) -> Vec<String> {
    let (before, after) = (logical_lines(old), logical_lines(new));
    let count =
        |lines: &[String], pattern: &Regex| lines.iter().map(|line| pattern.find_iter(line).count()).sum();
    let mut found = BTreeSet::new();
    for (pattern, what) in &*GROWING {
        let (was, is): (usize, usize) = (count(&before, pattern), count(&after, pattern));
        if is > was {
            found.insert((*what).to_owned());
        }
    }
    for (pattern, what) in &*SHRINKING {
        let (was, is): (usize, usize) = (count(&before, pattern), count(&after, pattern));
        if is < was {
            found.insert((*what).to_owned());
        }
    }
    let (known, named) = (base_images(&before), base_images(&after));
    for image in named.difference(&known) {
        found.insert(format!("it builds on another image ({image})"));
    }
    found.into_iter().map(|what| format!("{what}, which Cooper never does: repair it another way")).collect()
}

/// Lines joined over `\`, without quotes and comments. Parser directives stay: they look like comments and are none.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for line in text.lines() {
        let plain: String = line.trim_end().chars().filter(|part| !matches!(part, '\'' | '"')).collect();
        let start = plain.trim_start();
        if start.starts_with('#')
            && !start.trim_start_matches(['#', ' ']).to_ascii_lowercase().starts_with("syntax")
        {
            continue;
        }
        let continued = plain.ends_with('\\');
        let body = plain.trim_end_matches('\\').replace('\\', "");
        if let Some(last) = lines.last_mut() {
            last.push_str(&body);
        }
        if !continued {
            lines.push(String::new());
        }
    }
    lines
}

/// Images named by `FROM`, without tag and digest.
fn base_images(lines: &[String]) -> BTreeSet<String> {
    let image = |line: &String| {
        let mut words = line.split_whitespace();
        let is_from = words.next()?.eq_ignore_ascii_case("from");
        let named = words.find(|word| !word.starts_with("--")).filter(|_| is_from)?;
        let named = named.split('@').next()?;
        // A colon after the last slash starts the tag; one before it belongs to a port.
        let tag = named.rfind(':').filter(|&at| !named[at..].contains('/'));
        Some(named[..tag.unwrap_or(named.len())].to_ascii_lowercase())
    };
    lines.iter().filter_map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "FROM python:3.11\nRUN curl \\\n  -o /x https://a/b\nHEALTHCHECK CMD true\nUSER app\n";

    fn refused(new: &str) -> bool {
        !check(FILE, new).is_empty()
    }

    #[test]
    fn an_added_weakening_is_refused() {
        for line in [
            "RUN apt-get install -y --allow-unauthenticated x",
            "RUN echo 'deb [trusted=yes] http://x y z' > /etc/apt/sources.list",
            "RUN wget --no-check-certificate https://x",
            "RUN npm config set strict-ssl false",
            "RUN pip install --trusted-host x y",
            "RUN pip install --index-url http://x y",
            "ENV PIP_INDEX_URL=http://x",
            "RUN curl -fsSLk https://x",
            "RUN curl https://x | sudo bash",
            "RUN sh -c \"$(curl https://x)\"",
            "RUN make test || true",
            "RUN make test; true",
            "USER root",
            "USER 0:0",
            "HEALTHCHECK NONE",
            "ADD https://x/y /y",
            "RUN chmod -R 777 /",
            "RUN --network=host true",
            "RUN \"cu\"rl -k https://x",
            "ENV NODE_TLS_REJECT_UNAUTHORIZED=0",
            "FROM evil/python:3.11",
            "# syntax=evil/frontend",
            "RUN pip install git+https://x/y",
        ] {
            assert!(refused(&format!("{FILE}{line}\n")), "{line}");
        }
    }

    #[test]
    fn an_option_on_a_line_of_its_own_is_seen_with_its_command() {
        assert!(refused(&FILE.replace("-o /x", "-k \\\n  -o /x")));
    }

    #[test]
    fn a_removed_safeguard_is_refused() {
        assert!(refused(&FILE.replace("HEALTHCHECK CMD true\n", "")));
        assert!(refused(&FILE.replace("USER app\n", "")));
        assert!(refused(&FILE.replace("USER app\n", "USER root\n")));
    }

    #[test]
    fn what_was_there_before_and_plain_fixes_pass() {
        let old = "FROM a\nRUN make || true\nUSER root\n";
        assert!(check(old, &old.replace("make", "make all")).is_empty());
        assert!(check(FILE, &FILE.replace("3.11", "3.12")).is_empty());
        assert!(
            check(FILE, &format!("{FILE}# never || true\nRUN apt-get update && apt-get install -y git\n"))
                .is_empty()
        );
        assert!(check("flask\n", "flask\nPyYAML\n").is_empty());
    }
}
