//! The worker's index, proxy and CA settings, read as pip reads them, given on as uv and pip want them.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use cooper_common::network;

use super::Variables;
use crate::egress::dial::Place;

/// Names that are handed to installers as they are.
const HANDED_ON: [&str; 12] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NETRC",
];

/// Variables that name another way.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Settings {
    pub(super) index_url: Option<String>,
    pub(super) extra_index_urls: Vec<String>,
    pub(super) find_links: Vec<String>,
    pub(super) trusted_hosts: Vec<String>,
    pub(super) cert: Option<String>,
    pub(super) proxy: Option<String>,
    pub no_index: bool,
    /// `UV_*`, proxies and certificates of the worker's environment, and files its HOME holds.
    pub(super) environment: Variables,
}

impl Settings {
    /// pip's order: global, user, site, PIP_CONFIG_FILE, then PIP_* variables; later wins.
    pub fn of_worker(base_python: &Path) -> Self {
        let mut options = BTreeMap::new();
        for file in config_files(base_python) {
            if let Ok(text) = fs::read_to_string(&file) {
                options.extend(parse(&text));
            }
        }
        for (name, value) in env::vars() {
            if let Some(option) = name.strip_prefix("PIP_")
                && !value.is_empty()
            {
                options.insert(option.to_ascii_lowercase().replace('_', "-"), value);
            }
        }
        let mut settings = Self::from_options(&options);
        settings.environment = environment();
        settings
    }

    fn from_options(options: &BTreeMap<String, String>) -> Self {
        let one =
            |name: &str| options.get(name).map(|value| value.trim().to_owned()).filter(|v| !v.is_empty());
        let many = |name: &str| -> Vec<String> {
            one(name).iter().flat_map(|value| value.split_ascii_whitespace()).map(str::to_owned).collect()
        };
        Self {
            index_url: one("index-url"),
            extra_index_urls: many("extra-index-url"),
            find_links: many("find-links"),
            trusted_hosts: many("trusted-host"),
            cert: one("cert"),
            proxy: one("proxy"),
            no_index: one("no-index").is_some_and(|value| matches!(&*value, "1" | "true" | "yes" | "on")),
            environment: Variables::new(),
        }
    }

    /// Certificates that it trusts, as PEM.
    pub fn authorities(&self) -> String {
        let named = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
        let of_environment = named.iter().filter_map(|name| self.environment.get(*name)).map(PathBuf::from);
        let files = of_environment.chain(self.cert.as_ref().map(PathBuf::from));
        let files: std::collections::BTreeSet<PathBuf> = files.collect();
        files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
    }

    /// What of the machine's files an installer reads by these settings.
    pub fn places(&self) -> Vec<PathBuf> {
        let named = ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
        let of_environment = named.iter().filter_map(|name| self.environment.get(*name)).map(PathBuf::from);
        let links = self.find_links.iter().map(|link| PathBuf::from(link.trim_start_matches("file://")));
        let all = of_environment.chain(self.cert.as_ref().map(PathBuf::from)).chain(links);
        all.filter(|path| path.is_absolute()).collect()
    }

    /// Another way to the index than the session's own is not taken: what is built on the way is anybody's code.
    pub fn leave_the_way_to_the_session(&mut self) {
        self.proxy = None;
        self.environment.retain(|name, _| !PROXIES.contains(&&*name.to_ascii_uppercase()));
    }

    /// Everything is to come from another one.
    pub fn leave_the_index(&mut self) {
        (self.index_url, self.no_index) = (None, false);
        self.extra_index_urls.clear();
        self.find_links.clear();
        let of_index = |name: &str| {
            name.starts_with("UV_INDEX")
                || ["UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE", "NETRC"]
                    .contains(&name)
        };
        self.environment.retain(|name, _| !of_index(name));
    }

    /// Hosts that packages come from.
    pub fn hosts(&self, base_python: &Path) -> Vec<Place> {
        let mut urls: Vec<String> = self.index_url.iter().chain(&self.extra_index_urls).cloned().collect();
        urls.extend(self.find_links.iter().cloned());
        for name in ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"] {
            let value = self.environment.get(name).map(|value| value.to_string_lossy().into_owned());
            let listed = value.unwrap_or_default();
            // uv names an index as name=url.
            let named =
                listed.split([' ', ',']).map(|url| url.find("=http").map_or(url, |at| &url[at + 1..]));
            urls.extend(named.map(str::to_owned));
        }
        let own = self.index_url.is_some()
            || ["UV_DEFAULT_INDEX", "UV_INDEX_URL"].iter().any(|name| self.environment.contains_key(*name));
        let mut places: Vec<Place> = urls.iter().filter_map(|url| place(url)).collect();
        if !own && !self.no_index {
            places.extend(index_of_pip(base_python));
        }
        places
    }

    /// The same for pip in a session, whose code reads it: an index that is reached with a password is left out.
    pub fn for_sessions(&self) -> Vec<(String, String)> {
        let open = |url: &String| !url.contains('@') && place(url).is_some();
        // Of the worker's files a session reads the system's.
        let seen =
            |path: &str| ["/etc/ssl/", "/etc/pki/", "/usr/"].iter().any(|place| path.starts_with(place));
        let urls =
            |urls: &[String]| urls.iter().filter(|url| open(url)).cloned().collect::<Vec<_>>().join(" ");
        let options = [
            ("PIP_INDEX_URL", self.index_url.clone().filter(open).unwrap_or_default()),
            ("PIP_EXTRA_INDEX_URL", urls(&self.extra_index_urls)),
            ("PIP_FIND_LINKS", urls(&self.find_links)),
            ("PIP_TRUSTED_HOST", self.trusted_hosts.join(" ")),
            ("PIP_CERT", self.cert.clone().filter(|path| seen(path)).unwrap_or_default()),
            ("PIP_NO_INDEX", if self.no_index { "1".to_owned() } else { String::new() }),
            ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned()),
        ];
        let mut told: Vec<(String, String)> = options
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        for name in ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
            let value = self.environment.get(name).and_then(|value| value.to_str()).filter(|path| seen(path));
            told.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        }
        told
    }

    /// uv knows pip's options by names of its own. What the worker's UV_* say comes first.
    pub fn for_uv(&self) -> Variables {
        let mut variables = Variables::new();
        let mut put = |name: &str, value: &str| drop(variables.insert(name.to_owned(), value.into()));
        let lists = [
            ("UV_INDEX", self.extra_index_urls.join(" ")),
            ("UV_FIND_LINKS", self.find_links.join(",")),
            ("UV_INSECURE_HOST", self.trusted_hosts.join(" ")),
        ];
        if let Some(url) = &self.index_url {
            put("UV_DEFAULT_INDEX", url);
        }
        for (name, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
            put(name, list);
        }
        let bundle = self.environment.get("REQUESTS_CA_BUNDLE").and_then(|path| path.to_str());
        if let Some(cert) = self.cert.as_deref().or(bundle) {
            put("SSL_CERT_FILE", cert);
        }
        if let Some(proxy) = &self.proxy {
            put("ALL_PROXY", proxy);
        }
        variables.extend(self.environment.clone());
        variables
    }

    pub fn for_pip(&self) -> Variables {
        let mut variables = self.environment.clone();
        // Everything was read already; a file of the session's must not be taken for the worker's.
        variables.insert("PIP_CONFIG_FILE".to_owned(), "/dev/null".into());
        let options = [
            ("PIP_INDEX_URL", self.index_url.clone().unwrap_or_default()),
            ("PIP_EXTRA_INDEX_URL", self.extra_index_urls.join(" ")),
            ("PIP_FIND_LINKS", self.find_links.join(" ")),
            ("PIP_TRUSTED_HOST", self.trusted_hosts.join(" ")),
            ("PIP_CERT", self.cert.clone().unwrap_or_default()),
            ("PIP_PROXY", self.proxy.clone().unwrap_or_default()),
            ("PIP_NO_INDEX", if self.no_index { "1".to_owned() } else { String::new() }),
        ];
        for (name, value) in options.into_iter().filter(|(_, value)| !value.is_empty()) {
            variables.insert(name.to_owned(), value.into());
        }
        variables
    }
}

fn environment() -> Variables {
    let mut variables: Variables = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("UV_") || HANDED_ON.contains(&name.as_str()))
        .collect();
    // The installer's HOME is the session's: what the worker's HOME holds is named explicitly.
    let mut name_file = |variable: &str, file: Option<PathBuf>| {
        if let Some(file) = file.filter(|file| file.is_file()) {
            variables.entry(variable.to_owned()).or_insert_with(|| OsString::from(file));
        }
    };
    name_file("NETRC", home().map(|home| home.join(".netrc")));
    name_file("UV_CONFIG_FILE", config_home().map(|dir| dir.join("uv/uv.toml")));
    variables
}

/// The index that pip has when it is told of none, and where the files of that one are: read where pip says it.
fn index_of_pip(base_python: &Path) -> Vec<Place> {
    let lib = base_python.parent().and_then(Path::parent).map(|prefix| prefix.join("lib"));
    let found = lib.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
    let mut places: Vec<PathBuf> = found
        .filter(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")))
        .flat_map(|dir| [dir.join("site-packages"), dir.join("dist-packages")])
        .collect();
    places.extend(lib.map(|lib| lib.join("python3/dist-packages")));
    let texts =
        places.iter().filter_map(|dir| fs::read_to_string(dir.join("pip/_internal/models/index.py")).ok());
    let Some(text) = texts.into_iter().next() else { return Vec::new() };
    // PyPI = PackageIndex("https://…/", file_storage_domain="…")
    let Some(line) = text.split("PyPI = PackageIndex(").nth(1) else { return Vec::new() };
    let quoted: Vec<&str> = line.split('"').skip(1).step_by(2).take(2).collect();
    let storage = quoted.get(1).map(|host| format!("https://{host}/"));
    quoted
        .first()
        .map(|url| (*url).to_owned())
        .into_iter()
        .chain(storage)
        .filter_map(|url| place(&url))
        .collect()
}

/// Where an index is; None for a directory.
pub fn place(url: &str) -> Option<Place> {
    let (scheme, rest) = url.trim().split_once("://")?;
    let port = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let named = rest.split(['/', '?', '#']).next()?;
    let named = named.rsplit_once('@').map_or(named, |(_, named)| named);
    let (host, port) = network::authority(named, Some(port))?;
    Some(Place { host, port: Some(port) })
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}

fn config_home() -> Option<PathBuf> {
    env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| home().map(|home| home.join(".config")))
}

fn config_files(base_python: &Path) -> Vec<PathBuf> {
    let named = env::var_os("PIP_CONFIG_FILE").map(PathBuf::from);
    if named.as_deref() == Some(Path::new("/dev/null")) {
        return Vec::new();
    }
    let system = env::var("XDG_CONFIG_DIRS").unwrap_or_else(|_| "/etc/xdg".to_owned());
    let mut files: Vec<PathBuf> = system.split(':').map(|dir| Path::new(dir).join("pip/pip.conf")).collect();
    files.push("/etc/pip.conf".into());
    if !named.as_ref().is_some_and(|file| file.exists()) {
        files.extend(home().map(|home| home.join(".pip/pip.conf")));
        files.extend(config_home().map(|dir| dir.join("pip/pip.conf")));
    }
    // <prefix>/bin/python → <prefix>/pip.conf
    files.extend(base_python.parent().and_then(Path::parent).map(|prefix| prefix.join("pip.conf")));
    files.extend(named);
    files
}

/// Options of `[global]`, overridden by those of `[install]`. Names are in pip's long form.
fn parse(text: &str) -> BTreeMap<String, String> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let (mut section, mut option) = (String::new(), None::<String>);
    for line in text.lines() {
        let content = line.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            (section, option) = (name.trim().to_ascii_lowercase(), None);
        } else if let (true, Some(option)) = (line.starts_with([' ', '\t']), &option) {
            // A value that goes on.
            let value = sections.entry(section.clone()).or_default().entry(option.clone()).or_default();
            value.push('\n');
            value.push_str(content);
        } else if let Some((name, value)) = content.split_once(['=', ':']) {
            let name = name.trim().to_ascii_lowercase().replace('_', "-");
            sections.entry(section.clone()).or_default().insert(name.clone(), value.trim().to_owned());
            option = Some(name);
        }
    }
    let mut options = sections.remove("global").unwrap_or_default();
    options.extend(sections.remove("install").unwrap_or_default());
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(variables: &Variables, name: &str) -> String {
        variables.get(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
    }

    #[test]
    fn pip_settings_reach_uv_under_its_own_names() {
        let file = "# ours\n[global]\nindex_url = https://a.test/simple\nextra-index-url =\n    https://b.test/simple\n    \
                    https://c.test/simple\ncert: /ca.pem\n[install]\ntrusted-host = a.test b.test\nno-index = true\n\
                    [list]\nindex-url = https://wrong.test\n";
        let settings = Settings::from_options(&parse(file));
        let uv = settings.for_uv();
        assert_eq!(text(&uv, "UV_DEFAULT_INDEX"), "https://a.test/simple");
        assert_eq!(text(&uv, "UV_INDEX"), "https://b.test/simple https://c.test/simple");
        assert_eq!(text(&uv, "UV_INSECURE_HOST"), "a.test b.test");
        assert_eq!(text(&uv, "SSL_CERT_FILE"), "/ca.pem");
        assert!(settings.no_index);
        let pip = settings.for_pip();
        assert_eq!(text(&pip, "PIP_INDEX_URL"), "https://a.test/simple");
        assert_eq!(text(&pip, "PIP_CONFIG_FILE"), "/dev/null");
    }

    #[test]
    fn what_the_worker_says_to_uv_comes_before_what_it_says_to_pip() {
        let mut settings = Settings::from_options(&parse("[global]\nindex-url = https://pip.test\n"));
        settings.environment.insert("UV_DEFAULT_INDEX".to_owned(), "https://uv.test".into());
        assert_eq!(text(&settings.for_uv(), "UV_DEFAULT_INDEX"), "https://uv.test");
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_a_panic(text in ".*") {
            let _ = Settings::from_options(&parse(&text)).for_uv();
        }
    }
}
