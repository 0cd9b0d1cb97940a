//! Claims about the output log.

use proptest::prelude::*;

use super::*;

fn log() -> (tempfile::TempDir, OutputLog) {
    let dir = tempfile::tempdir().unwrap();
    let log = OutputLog::open(dir.path()).unwrap();
    (dir, log)
}

fn whole(log: &OutputLog, task: TaskId, stream: Stream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = log.read(task, stream, bytes.len() as u64, usize::MAX).unwrap();
        if more.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&more);
    }
}

#[test]
fn bytes_read_back_as_they_came_and_streams_stay_apart() {
    let (_dir, log) = log();
    let task = TaskId::new();
    assert_eq!(log.append(task, Stream::Stdout, 0, b"hello ").unwrap(), 6);
    assert_eq!(log.append(task, Stream::Stderr, 0, b"oh").unwrap(), 2);
    assert_eq!(log.append(task, Stream::Stdout, 6, b"world").unwrap(), 11);
    assert_eq!(whole(&log, task, Stream::Stdout), b"hello world");
    assert_eq!(&log.read(task, Stream::Stdout, 4, 3).unwrap()[..], b"o w");
    assert!(log.read(task, Stream::Stdout, 99, 3).unwrap().is_empty());
    assert_eq!(whole(&log, task, Stream::Stderr), b"oh");
    assert_eq!(log.len(TaskId::new(), Stream::Stdout).unwrap(), 0);
}

#[test]
fn a_gap_is_refused_and_says_where_to_go_on() {
    let (_dir, log) = log();
    let task = TaskId::new();
    log.append(task, Stream::Stdout, 0, b"abc").unwrap();
    let refused = log.append(task, Stream::Stdout, 4, b"e").unwrap_err();
    assert!(matches!(refused, Error::Gap { offset: 4, held: 3 }), "{refused}");
    let refused = log.append(task, Stream::Stdout, u64::MAX, b"e").unwrap_err();
    assert!(matches!(refused, Error::TooLong(_)), "{refused}");
    assert_eq!(whole(&log, task, Stream::Stdout), b"abc");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_sent_again_the_stream_is_what_was_written(
        text in proptest::collection::vec(any::<u8>(), 1..2000),
        starts in proptest::collection::vec((0.0f64..1.0, 1usize..400), 1..40),
    ) {
        let (_dir, log) = log();
        let task = TaskId::new();
        let mut held = 0usize;
        for (back, length) in starts {
            // Anywhere in what is held, as after a reconnect at an old offset.
            let start = (held as f64 * back) as usize;
            let end = text.len().min(start + length);
            held = held.max(end);
            let len = log.append(task, Stream::Stdout, start as u64, &text[start..end]).unwrap();
            prop_assert_eq!(len, held as u64);
        }
        prop_assert_eq!(whole(&log, task, Stream::Stdout), &text[..held]);
    }
}

#[tokio::test]
async fn what_was_appended_is_there_after_a_restart() {
    let (dir, log) = log();
    let task = TaskId::new();
    log.append(task, Stream::Stdout, 0, &[7; 100_000]).unwrap();
    log.sync(task).await.unwrap();
    log.sync(TaskId::new()).await.unwrap();
    drop(log);
    let log = OutputLog::open(dir.path()).unwrap();
    assert_eq!(log.len(task, Stream::Stdout).unwrap(), 100_000);
    assert_eq!(log.append(task, Stream::Stdout, 99_999, &[7, 8]).unwrap(), 100_001);
}

#[test]
fn more_tasks_than_may_be_open_all_keep_their_output() {
    let (_dir, log) = log();
    let tasks: Vec<TaskId> = (0..limits::output::OPEN_TASKS_MAX * 2).map(|_| TaskId::new()).collect();
    for round in 0..3u8 {
        for task in &tasks {
            log.append(*task, Stream::Stdout, u64::from(round), &[round]).unwrap();
        }
    }
    assert!(lock(&log.inner.open).tasks.len() <= limits::output::OPEN_TASKS_MAX);
    for task in &tasks {
        assert_eq!(whole(&log, *task, Stream::Stdout), [0, 1, 2]);
    }
}

#[test]
fn a_removed_task_begins_again_at_nothing() {
    let (dir, log) = log();
    let task = TaskId::new();
    log.append(task, Stream::Stdout, 0, b"first").unwrap();
    log.remove(task).unwrap();
    log.remove(task).unwrap();
    assert_eq!(log.len(task, Stream::Stdout).unwrap(), 0);
    log.append(task, Stream::Stdout, 0, b"second").unwrap();
    assert_eq!(whole(&log, task, Stream::Stdout), b"second");
    drop(dir);
}
