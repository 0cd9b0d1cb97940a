//! Passwords of package indexes stay with the worker: what installers are told leads to its proxy, which knows them
//! (`egress/index.rs`).

use std::ffi::OsString;

use base64::Engine as _;

use super::{
    Variables,
    pip_settings::{Settings, place},
};
use crate::egress::{
    dial,
    index::{self, Index},
};

/// Lists of indexes, separated by spaces or commas; each may have a name before it.
const LISTS: [&str; 5] =
    ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"];

impl Settings {
    /// Puts the proxy's names in the place of indexes with passwords. The same settings give the same numbers, wherever
    /// they are read.
    pub fn hide_passwords(&mut self) -> Vec<Index> {
        let mut found = Vec::new();
        let of_pip = self.index_url.iter_mut().chain(&mut self.extra_index_urls).chain(&mut self.find_links);
        of_pip.for_each(|url| *url = hidden(url, None, &mut found));
        for name in LISTS {
            let Some(list) = self.environment.get(name).map(|list| list.to_string_lossy().into_owned())
            else {
                continue;
            };
            let entries = list.split([' ', ',']).filter(|entry| !entry.is_empty()).map(|entry| {
                let (named, url) = match entry.find("=http") {
                    Some(at) => (&entry[..=at], &entry[at + 1..]),
                    None => ("", entry),
                };
                let user = user_of(&self.environment, named.trim_end_matches('='));
                format!("{named}{}", hidden(url, user, &mut found))
            });
            let entries: Vec<String> = entries.collect();
            self.environment.insert(name.to_owned(), OsString::from(entries.join(" ")));
        }
        self.environment.retain(|name, _| !is_of_user(name));
        for number in 0..found.len() {
            self.trusted_hosts.push(index::name(number));
        }
        found
    }
}

fn is_of_user(name: &str) -> bool {
    name.starts_with("UV_INDEX_") && (name.ends_with("_USERNAME") || name.ends_with("_PASSWORD"))
}

/// What uv is told of the user of an index with a name.
fn user_of(environment: &Variables, named: &str) -> Option<String> {
    let upper: String =
        named.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    let read = |what: &str| environment.get(&format!("UV_INDEX_{upper}_{what}"));
    let text = |value: Option<&OsString>| value.map(|value| value.to_string_lossy().into_owned());
    let (user, password) = (text(read("USERNAME")), text(read("PASSWORD")));
    (!named.is_empty() && (user.is_some() || password.is_some()))
        .then(|| format!("{}:{}", user.unwrap_or_default(), password.unwrap_or_default()))
}

/// The URL as an installer is told it.
fn hidden(url: &str, named: Option<String>, found: &mut Vec<Index>) -> String {
    let Some((scheme, rest)) = url.trim().split_once("://") else { return url.to_owned() };
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let inline = authority.rsplit_once('@').map(|(user, _)| dial::unescaped(user));
    let (Some(place), Some(user)) = (place(url), inline.or(named.map(String::into_bytes))) else {
        return url.to_owned();
    };
    let user = if user.contains(&b':') { user } else { [&*user, b":"].concat() };
    // Beneath the directory that it lies in are its files as well, with every kind of index that is known.
    let directory = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let beneath = format!("{}/", directory.rsplit_once('/').map_or("", |(above, _)| above));
    let index = Index {
        tls: scheme == "https",
        host: place.host,
        port: place.port.unwrap_or(if scheme == "https" { 443 } else { 80 }),
        beneath,
        authorization: format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user)),
    };
    let number = found.iter().position(|known| *known == index).unwrap_or_else(|| {
        found.push(index);
        found.len() - 1
    });
    format!("http://{}{path}", index::name(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_left_in_what_installers_are_told() {
        let mut settings = Settings {
            index_url: Some("https://us%40er:canary@a.test/api/pypi/simple/".to_owned()),
            extra_index_urls: vec![
                "https://open.test/simple".to_owned(),
                "http://canary@b.test:8080/simple".to_owned(),
            ],
            ..Settings::default()
        };
        let environment = [
            ("UV_INDEX", "team=https://c.test/+simple https://us%40er:canary@a.test/api/pypi/simple/"),
            ("UV_INDEX_TEAM_USERNAME", "me"),
            ("UV_INDEX_TEAM_PASSWORD", "canary"),
        ];
        settings.environment =
            environment.map(|(name, value)| (name.to_owned(), OsString::from(value))).into_iter().collect();
        let found = settings.hide_passwords();
        let told = format!("{:?} {:?}", settings.for_uv(), settings.for_pip());
        assert!(!told.contains("canary") && !told.contains("dXM"), "{told}");
        assert!(
            told.contains("http://0.index.cooper.internal/api/pypi/simple/")
                && told.contains("https://open.test/simple")
        );
        assert!(told.contains("team=http://2.index.cooper.internal/+simple http://0.index"), "{told}");
        let first = &found[0];
        assert_eq!(
            (first.tls, &*first.host, first.port, &*first.beneath),
            (true, "a.test", 443, "/api/pypi/")
        );
        assert_eq!(first.authorization, "Basic dXNAZXI6Y2FuYXJ5");
        assert_eq!((found.len(), found[1].port, &*found[2].beneath), (3, 8080, "/"));
    }
}
