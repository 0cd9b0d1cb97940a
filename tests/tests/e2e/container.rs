//! A worker in a container with Docker's default profile: not privileged, no capability added, nothing mounted for it.

use cooper_tests::{
    binary, docker,
    program::{Running, command},
    seconds,
};

const SCRIPT: &str = r#"
set -e
/cooper up --no-compose --data /data > /tmp/up.log 2>&1 &
for _ in $(seq 100); do grep -q 'is up' /tmp/up.log && break; sleep 0.1; done
export COOPER_DATA=/data
/cooper doctor | head -1
mine=$(/cooper session create) other=$(/cooper session create)
/cooper --json session show $mine
cat > /tmp/hostile.py <<END
import os, socket, subprocess
other = '/data/worker/sessions/$other'
attempts = {
    'the tokens': lambda: open('/data/worker.token').read(),
    'the store': lambda: open('/data/cooper.db', 'rb').read(1),
    'who else is here': lambda: os.listdir('/data/worker/sessions'),
    'a sibling': lambda: os.listdir(other + '/workspace'),
    'a sibling, written': lambda: open(other + '/workspace/x', 'w'),
    'passwords': lambda: open('/etc/shadow').read(),
    'the worker': lambda: os.kill(1, 0),
    'its environment': lambda: open('/proc/1/environ').read(),
    'a shared directory': lambda: open('/tmp/x', 'w'),
    'another user': lambda: os.setuid(0),
    'datagrams': lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    'sockets of files': lambda: socket.socket(socket.AF_UNIX),
    'a mount': lambda: subprocess.run(['mount', '-t', 'tmpfs', 'none', '/mnt'], check=True, capture_output=True),
}
for what, attempt in attempts.items():
    try:
        attempt()
    except (OSError, subprocess.CalledProcessError):
        continue
    print('reached:', what)
print('done as', os.getuid() > 1000)
END
/cooper exec $mine /tmp/hostile.py
/cooper exec $other -c '6 * 7'
"#;

#[test]
fn in_a_container_with_the_default_profile_sessions_have_uids_of_their_own_and_reach_nothing() {
    if !docker::wanted(
        "in_a_container_with_the_default_profile_sessions_have_uids_of_their_own_and_reach_nothing",
    ) {
        return;
    }
    let mut run = command("docker");
    run.args(["run", "--rm", "-i", "-v"]).arg(format!("{}:/cooper:ro", binary().display()));
    run.args(["python:3.11-slim", "bash", "-c", SCRIPT]);
    let said = Running::start(run, b"").finish(seconds(90)).expect(0).out();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("tier      T1 (sessions are taken"), "{said}");
    let session: serde_json::Value = serde_json::from_str(lines[1]).expect("a session");
    assert_eq!(session["tier"], "T1");
    assert_eq!(lines[2..], ["done as True", "42"], "{said}");
}
