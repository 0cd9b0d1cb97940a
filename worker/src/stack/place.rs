//! Where a stack is for the engine. A worker in a container sees its own file system, and the engine takes what a stack
//! binds from the machine's: a stack with `./data` in it has to lie at the same path in both.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bollard::models::MountPoint;
use cooper_common::error::{Code, Error, Result};
use cooper_repair::compose::Model;
use serde_json::Value;

use super::engine::Engine;

/// Refuses a stack of which the engine would bind something else than what is here.
pub(super) async fn check(engine: &Engine, dir: &Path, model: &Model) -> Result<()> {
    let Some((service, path)) = first_bind(dir, model) else { return Ok(()) };
    let Some(id) = own_container(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()) else {
        return Ok(());
    };
    // An engine that does not know this container is another machine's, and what it binds is the stack's own business.
    let Some(container) = engine.inspect(&id).await? else { return Ok(()) };
    let there = outside(dir, &container.mounts.unwrap_or_default());
    if there.as_deref() == Some(dir) {
        return Ok(());
    }
    let there = there.map_or_else(
        || "where nothing of it is".to_owned(),
        |there| format!("where the stack is in {}", there.display()),
    );
    Err(Error::new(
        Code::StackElsewhere,
        format!(
            "{service} takes {path} from the engine's machine, {there}; this worker runs in a container and has the stack in {}",
            dir.display()
        ),
    ))
}

/// What the engine is told to take from the stack's directory, and for whom.
fn first_bind(dir: &Path, model: &Model) -> Option<(String, String)> {
    let beneath = |path: &str| Path::new(path).starts_with(dir);
    let mounted = model.services.iter().find_map(|(name, service)| {
        let binds = service.volumes.iter().filter(|mount| mount.kind == "bind");
        let source = binds.filter_map(|mount| mount.source.as_deref()).find(|source| beneath(source))?;
        Some((format!("service {name}"), source.to_owned()))
    });
    mounted.or_else(|| {
        let files = ["secrets", "configs"].iter().filter_map(|kind| model.extra.get(*kind)?.as_object());
        let file = |(name, described): (&String, &Value)| {
            Some((name.clone(), described.get("file")?.as_str()?.to_owned()))
        };
        let (name, path) = files.flatten().filter_map(file).find(|(_, path)| beneath(path))?;
        Some((format!("secret or config {name}"), path))
    })
}

/// The id of the container that this process is in: its hostname file comes from a directory of that name.
fn own_container(mountinfo: &str) -> Option<String> {
    let hexadecimal = |id: &&str| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let of_the_engine = matches!(at, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf");
        let id = of_the_engine.then(|| root.split('/').rev().nth(1))??;
        Some(id).filter(hexadecimal).map(str::to_owned)
    })
}

/// What a path of this container is on the engine's machine. None = nothing: it is the container's own.
fn outside(path: &Path, mounts: &[MountPoint]) -> Option<PathBuf> {
    let places = mounts.iter().filter_map(|mount| {
        let (source, at) = (mount.source.as_deref()?, mount.destination.as_deref()?);
        Some((source, at, path.strip_prefix(at).ok()?))
    });
    let (source, _, rest) = places.max_by_key(|(_, at, _)| at.len())?;
    Some(if rest.as_os_str().is_empty() { PathBuf::from(source) } else { Path::new(source).join(rest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, at: &str) -> MountPoint {
        MountPoint { source: Some(source.into()), destination: Some(at.into()), ..Default::default() }
    }

    #[test]
    fn a_path_is_followed_out_of_the_container_by_the_nearest_mount() {
        let mounts =
            [mount("/srv", "/stacks"), mount("/srv/shop", "/srv/shop"), mount("/var/lib/x", "/data")];
        let of = |path: &str| outside(Path::new(path), &mounts);
        assert_eq!(of("/srv/shop"), Some("/srv/shop".into()));
        assert_eq!(of("/srv/shop/web"), Some("/srv/shop/web".into()));
        assert_eq!(of("/stacks/shop"), Some("/srv/shop".into()));
        assert_eq!(of("/home/shop"), None);
    }

    #[test]
    fn the_container_is_known_by_what_the_engine_mounts_into_it() {
        let id = "0f".repeat(32);
        let line = format!(
            "1240 1233 254:0 /var/lib/docker/containers/{id}/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw"
        );
        assert_eq!(own_container(&line), Some(id.clone()));
        assert_eq!(own_container(&line.replace("/etc/hostname", "/elsewhere")), None);
        assert_eq!(own_container("25 1 254:0 / / rw - ext4 /dev/vda rw"), None);
    }

    #[test]
    fn only_what_lies_in_the_stack_counts() {
        let model = |volume: &str, file: &str| {
            let text = format!(
                r#"{{"name": "shop", "services": {{"web": {{"volumes": [{volume}]}}}}, "secrets": {{"key": {{"file": "{file}"}}}}}}"#
            );
            Model::from_json(&text).expect("a model")
        };
        let of = |volume: &str, file: &str| first_bind(Path::new("/srv/shop"), &model(volume, file));
        let bind = |source: &str| format!(r#"{{"type": "bind", "source": "{source}", "target": "/data"}}"#);
        assert_eq!(of(&bind("/var/run/docker.sock"), "/etc/key"), None);
        assert_eq!(of(r#"{"type": "volume", "source": "data", "target": "/data"}"#, "/etc/key"), None);
        assert_eq!(of(&bind("/srv/shop/data"), ""), Some(("service web".into(), "/srv/shop/data".into())));
        assert_eq!(
            of(&bind("/srv/other"), "/srv/shop/key"),
            Some(("secret or config key".into(), "/srv/shop/key".into()))
        );
    }
}
