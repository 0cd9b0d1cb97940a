//! What was promoted, as a commit on a branch of its own, pushed and proposed where the stack's policy says so.
//!
//! Made with plumbing: an index of its own, `commit-tree`, `update-ref`. The user's index, branch, files and whatever else
//! is not committed stay as they are. What fails here is said and changes nothing of the repair.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use cooper_common::error::Result;
use cooper_common::redact::Redactor;
use cooper_repair::RepairPlan;
use cooper_repair::edit::{FileChange, sha256};
use cooper_repair::policy::Publish;
use serde_json::{Value, json};

use super::git::git;
use super::{Step, While, failed, process};

/// For what happens in the repository, and for what goes over the network.
const LOCAL: Duration = Duration::from_secs(30);
const REMOTE: Duration = Duration::from_secs(60);
const REMOTE_NAME: &str = "origin";
const API_DEFAULT: &str = "https://api.github.com";
/// Kept of an answer of the API.
const SAID_MAX: usize = 300;
/// Git asks this for user and password; what it prints comes from the environment of that one push.
const ASKPASS: &str = "#!/bin/sh\ncase \"$1\" in Username*) echo x-access-token ;; *) printf '%s\\n' \"$COOPER_PUSH_TOKEN\" ;; esac\n";

/// A repository, seen from the stack's directory.
struct Repository {
    head: String,
    /// Branch that is checked out, if one is.
    branch: Option<String>,
    /// Path from its root to the stack's directory: empty, or with a `/` at its end.
    prefix: String,
    /// The owner of its files, whom what is written belongs to as well.
    owner: (u32, u32),
    index: PathBuf,
}

impl Step<'_> {
    /// Does what the stack's policy says after a promotion; says in a part of a sentence what came of it. `paths` are
    /// those of the plan's changes, from the stack's directory.
    pub(super) async fn publish(&self, plan: &RepairPlan, paths: &[&str]) -> String {
        let publish = plan.publish;
        if publish.is_none() {
            return String::new();
        }
        let branch = format!("cooper/{}", self.run.to_string().replace('_', "-"));
        let (repository, commit) = match self.commit(plan, paths, &branch).await {
            Ok(made) => made,
            Err(error) => return self.said(format!("no branch was made: {}", error.message)),
        };
        let mut said = format!("committed as {} on branch {branch}", &commit[..commit.len().min(12)]);
        if publish >= Publish::Push {
            let token = token();
            self.log.hide(Redactor::new(token.as_deref()));
            match self.push(&commit, &branch, token.as_deref()).await {
                Err(error) => return self.said(format!("{said}, but not pushed: {}", error.message)),
                Ok(url) => {
                    said.push_str(&format!(", pushed to {REMOTE_NAME}"));
                    if publish == Publish::PullRequest {
                        let opened = self.propose(plan, &repository, &url, &branch, token.as_deref()).await;
                        said.push_str(&match opened {
                            Ok(at) => format!(", pull request {at}"),
                            Err(error) => format!(", but no pull request: {}", error.message),
                        });
                    }
                }
            }
        }
        self.said(said)
    }

    fn said(&self, what: String) -> String {
        let what = self.log.redact(&what);
        self.log.say(&what);
        format!("; {what}")
    }

    /// The commit on the branch; one that is there already is taken.
    async fn commit(&self, plan: &RepairPlan, paths: &[&str], branch: &str) -> Result<(Repository, String)> {
        let repository = self.repository().await?;
        let reference = format!("refs/heads/{branch}");
        if let Ok(known) = self.ask(&["rev-parse", "--verify", "--quiet", &reference]).await {
            return Ok((repository, known));
        }
        let made = self.make_commit(plan, paths, &repository).await;
        let _ = fs::remove_file(&repository.index);
        let commit = made?;
        // The empty value: there must be none of that name.
        self.write(&repository, &["update-ref", &reference, &commit, ""], &[]).await?;
        Ok((repository, commit))
    }

    async fn make_commit(
        &self,
        plan: &RepairPlan,
        paths: &[&str],
        repository: &Repository,
    ) -> Result<String> {
        self.write(repository, &["read-tree", &repository.head], &[]).await?;
        for (change, path) in plan.edits.iter().zip(paths) {
            let path = format!("{}{path}", repository.prefix);
            let mode = self.mode_of(change, repository, &path).await?;
            let hash = ["hash-object", "-w", "--stdin", "--no-filters"];
            let blob = self.write(repository, &hash, change.new_content.as_bytes()).await?;
            let entry = format!("{mode},{blob},{path}");
            self.write(repository, &["update-index", "--add", "--cacheinfo", &entry], &[]).await?;
        }
        let tree = self.write(repository, &["write-tree"], &[]).await?;
        let what: Vec<&str> = plan.edits.iter().map(|change| change.description.as_str()).collect();
        let message = format!(
            "{}: {}\n\n{}\n\nRun: {}\nPlan: {}\n",
            self.service,
            what.join("; "),
            plan.diagnosis.cause,
            self.run,
            plan.hash()
        );
        let message = self.log.redact(&message);
        self.write(repository, &["commit-tree", &tree, "-p", &repository.head], message.as_bytes()).await
    }

    /// The mode of a changed file, if what was committed of it is what the plan was made for: what else the user
    /// changed in it is his to commit.
    async fn mode_of(
        &self,
        change: &FileChange,
        repository: &Repository,
        path: &str,
    ) -> Result<&'static str> {
        let at = format!("{}:{path}", repository.head);
        let told = process::read(git(&self.project.dir, ["cat-file", "blob", &at]), LOCAL).await?;
        let committed = told.status.success().then(|| sha256(&told.output));
        if committed != change.base_sha256 {
            return Err(failed(format!("{path} has changes that are not committed")));
        }
        let entry = self.ask(&["ls-tree", "--full-tree", &repository.head, "--", path]).await;
        let executable = entry.is_ok_and(|entry| entry.starts_with("100755"));
        Ok(match change.mode.map_or(executable, |mode| mode & 0o111 != 0) {
            true => "100755",
            false => "100644",
        })
    }

    async fn repository(&self) -> Result<Repository> {
        let head = self.ask(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).await;
        let head = head.map_err(|_| failed("the stack is in no git repository that has a commit"))?;
        let dir = PathBuf::from(self.ask(&["rev-parse", "--absolute-git-dir"]).await?);
        let meta = fs::metadata(&dir).while_doing("looking at the repository")?;
        Ok(Repository {
            head,
            branch: self.ask(&["symbolic-ref", "--short", "--quiet", "HEAD"]).await.ok(),
            prefix: self.ask(&["rev-parse", "--show-prefix"]).await?,
            owner: (meta.uid(), meta.gid()),
            index: dir.join(format!("cooper-index-{}", self.run)),
        })
    }

    /// What git answers, without its last line end.
    async fn ask(&self, args: &[&str]) -> Result<String> {
        answer(process::read(git(&self.project.dir, args), LOCAL).await?)
    }

    /// The same of a command that writes: with the index of this run, as the owner of the repository.
    async fn write(&self, repository: &Repository, args: &[&str], input: &[u8]) -> Result<String> {
        let mut command = git(&self.project.dir, args);
        command.env("GIT_INDEX_FILE", &repository.index);
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "Cooper")
                .env(format!("GIT_{who}_EMAIL"), "cooper@localhost");
        }
        let (uid, gid) = repository.owner;
        if rustix::process::geteuid().is_root() && uid != 0 {
            command.uid(uid).gid(gid).env("HOME", "/nonexistent").env("GIT_CONFIG_GLOBAL", "/dev/null");
        }
        answer(process::read_fed(command, input, LOCAL).await?)
    }

    /// Pushes the commit; brings the address it was pushed to.
    async fn push(&self, commit: &str, branch: &str, token: Option<&str>) -> Result<String> {
        let url = self.ask(&["remote", "get-url", "--push", REMOTE_NAME]).await;
        let url = url.map_err(|_| failed(format!("there is no remote {REMOTE_NAME}")))?;
        let target = format!("{commit}:refs/heads/{branch}");
        // By its address: the names of the user's remote branches stay as they are.
        let args = [
            "-c",
            "credential.helper=",
            "-c",
            "http.followRedirects=false",
            "push",
            "--no-verify",
            "--porcelain",
            "--",
            &url,
            &target,
        ];
        let mut command = git(&self.project.dir, args);
        if let Some(token) = token.filter(|_| may_hear_secrets(&url)) {
            command.env("GIT_ASKPASS", self.askpass()?).env("COOPER_PUSH_TOKEN", token);
        }
        answer(process::read(command, REMOTE).await?)?;
        Ok(url)
    }

    fn askpass(&self) -> Result<PathBuf> {
        let path = self.dir.path("askpass");
        let _ = fs::remove_file(&path);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path);
        file.and_then(|mut file| std::io::Write::write_all(&mut file, ASKPASS.as_bytes()))
            .while_doing("writing what git asks for a password")?;
        Ok(path)
    }

    /// Opens a pull request; brings its address.
    async fn propose(
        &self,
        plan: &RepairPlan,
        repository: &Repository,
        url: &str,
        branch: &str,
        token: Option<&str>,
    ) -> Result<String> {
        let base = repository.branch.as_deref().ok_or_else(|| failed("no branch is checked out"))?;
        let token = token.ok_or_else(|| failed("there is no GITHUB_TOKEN or GITHUB_TOKEN_FILE"))?;
        let project = project_of(url).ok_or_else(|| failed(format!("{url} names no OWNER/REPOSITORY")))?;
        let api = std::env::var("GITHUB_API_URL").unwrap_or_else(|_| API_DEFAULT.to_owned());
        let api = api.trim_end_matches('/');
        if !may_hear_secrets(api) {
            return Err(failed(format!("GITHUB_API_URL is {api}; a token goes to https only")));
        }
        let body = json!({
            "title": format!("{}: {}", self.service, plan.diagnosis.cause),
            "head": branch,
            "base": base,
            "body": format!("Verified and deployed by run {} (plan {}).", self.run, plan.hash()),
        });
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REMOTE)
            .user_agent(concat!("cooper/", env!("CARGO_PKG_VERSION")))
            .build()
            .while_doing("asking for a pull request")?;
        let answer = client
            .post(format!("{api}/repos/{project}/pulls"))
            .bearer_auth(token)
            .header("accept", "application/vnd.github+json")
            .body(self.log.redact(&body.to_string()))
            .send()
            .await
            .while_doing("asking for a pull request")?;
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        let at = serde_json::from_str::<Value>(&text).unwrap_or_default();
        match at["html_url"].as_str().filter(|_| status.is_success()) {
            Some(at) => Ok(at.to_owned()),
            None => {
                let said: String = text.chars().take(SAID_MAX).collect();
                Err(failed(format!("{api} answered {status}: {said}")))
            }
        }
    }
}

/// From the environment, or the file it names.
fn token() -> Option<String> {
    let of_file = || fs::read_to_string(std::env::var_os("GITHUB_TOKEN_FILE")?).ok();
    let token = std::env::var("GITHUB_TOKEN").ok().or_else(of_file)?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Only what is encrypted, or does not leave the machine.
fn may_hear_secrets(url: &str) -> bool {
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let at_local = |start: &&str| {
        let rest = url.strip_prefix(*start);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    };
    url.starts_with("https://") || local.iter().any(at_local)
}

/// `OWNER/REPOSITORY` at the end of a remote's address.
fn project_of(url: &str) -> Option<String> {
    let url = url.trim_end_matches('/');
    let mut parts = url.strip_suffix(".git").unwrap_or(url).rsplit(['/', ':']);
    let (name, owner) = (parts.next()?, parts.next()?);
    let plain = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    (plain(name) && plain(owner)).then(|| format!("{owner}/{name}"))
}

fn answer(told: process::Finished) -> Result<String> {
    if told.status.success() {
        return Ok(String::from_utf8_lossy(&told.output).trim_end_matches('\n').to_owned());
    }
    Err(failed(told.last_line()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remotes_address_names_its_project_and_says_whether_a_token_may_go_there() {
        for url in ["https://host/ann/shop.git", "git@host:ann/shop", "/srv/git/ann/shop.git/"] {
            assert_eq!(project_of(url).as_deref(), Some("ann/shop"), "{url}");
        }
        assert_eq!(project_of("shop"), None);
        assert!(may_hear_secrets("https://host/x") && may_hear_secrets("http://127.0.0.1:80/x"));
        for url in ["http://host/x", "http://127.0.0.1.evil/x", "git@host:x", "/srv/x"] {
            assert!(!may_hear_secrets(url), "{url}");
        }
    }
}
