//! The end in order, and versions: what is said to whom, and what is not said to those who do not know it.

use cooper_common::limits::link::{HOST_PROTOCOL_MAX, PROTOCOL_MAX};
use cooper_proto::{
    host::{self, HostHello, to_host, to_link},
    v1::{self, up},
};

use super::{
    End, end_task,
    fakes::{Coordinator, Host, fence, link, soon},
    hello, noop, python,
};

fn hello_now() -> HostHello {
    HostHello { version: HOST_PROTOCOL_MAX, ..hello() }
}

async fn drain(host: &Host, deadline_in_ms: u64) {
    let drain = host::Drain { reason: "SIGTERM".into(), deadline_in_ms, checkpoint: false };
    host.say(to_link::Message::Drain(drain), &[]).await;
}

async fn started(host: &mut Host) -> String {
    match host.next_order().await {
        to_host::Message::Start(assign) => assign.task_id,
        other => panic!("not Start: {other:?}"),
    }
}

#[tokio::test]
async fn draining_it_names_what_it_took_and_takes_nothing_more_until_what_runs_has_ended() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, link) = link(&coordinator.addr, hello_now()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("taken", fence(1, 1), python()).await;
    assert_eq!(started(&mut host).await, "taken");
    drain(&host, 60_000).await;
    let up::Message::Draining(draining) = attach.next().await else { panic!("it says that it stops") };
    let taken: Vec<_> = draining.attempts.iter().map(|item| item.task_id.as_str()).collect();
    assert_eq!((taken, draining.remaining, draining.deadline_in_ms), (vec!["taken"], 1, 60_000));

    // What crosses the drain is neither started nor answered.
    attach.assign("late", fence(1, 1), python()).await;
    attach.assign("late noop", fence(1, 1), noop()).await;
    host.hears_nothing().await;
    end_task(&host, "taken", b"done\n").await;
    let result = attach.result().await;
    assert_eq!(result.task_id, "taken");
    attach.ack(&result).await;
    let goodbye = attach.next().await;
    assert_eq!(goodbye, up::Message::Goodbye(v1::Goodbye { reason: "SIGTERM".into() }));
    drop(attach);
    assert!(matches!(host.next_order().await, to_host::Message::Forget(_)));
    assert_eq!(host.next_order().await, to_host::Message::Drained(host::Drained {}));
    assert_eq!(soon("the end", link).await.unwrap(), End::Drained);
}

#[tokio::test]
async fn a_cut_while_draining_is_made_good_and_the_next_coordinator_hears_of_the_drain() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello_now()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    started(&mut host).await;
    drain(&host, 60_000).await;
    assert!(matches!(attach.next().await, up::Message::Draining(_)));
    drop(attach);
    let mut attach = coordinator.attach().await;
    let keep = v1::AttemptVerdict {
        task_id: "t".into(),
        fence: fence(1, 1),
        verdict: v1::Verdict::Keep.into(),
        ..v1::AttemptVerdict::default()
    };
    let said = attach.welcome(2, vec![keep]).await;
    assert!(said.attempts.len() == 1 && said.attempts[0].running);
    assert!(matches!(attach.next().await, up::Message::Draining(it) if it.attempts.len() == 1));
    end_task(&host, "t", b"").await;
    let result = attach.result().await;
    attach.ack(&result).await;
    assert!(matches!(attach.next().await, up::Message::Goodbye(_)));
}

#[tokio::test]
async fn at_the_deadline_it_says_goodbye_whatever_runs() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, link) = link(&coordinator.addr, hello_now()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    attach.assign("t", fence(1, 1), python()).await;
    started(&mut host).await;
    drain(&host, 200).await;
    assert!(matches!(attach.next().await, up::Message::Draining(_)));
    assert!(matches!(attach.next().await, up::Message::Goodbye(_)));
    drop(attach);
    assert_eq!(soon("the end", link).await.unwrap(), End::Drained);
}

#[tokio::test]
async fn a_coordinator_of_protocol_1_is_told_nothing_that_it_does_not_know() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, link) = link(&coordinator.addr, hello_now()).await;
    let mut attach = coordinator.attach().await;
    let said = attach.welcome_in(1, 1, vec![]).await;
    assert_eq!((said.protocol_min, said.protocol_max), (1, PROTOCOL_MAX));
    attach.assign("t", fence(1, 1), python()).await;
    started(&mut host).await;
    drain(&host, 60_000).await;
    end_task(&host, "t", b"").await;
    let result = attach.result().await;
    attach.ack(&result).await;
    assert!(matches!(attach.next().await, up::Message::Goodbye(_)), "and not Draining");
    drop(attach);
    assert_eq!(soon("the end", link).await.unwrap(), End::Drained);
}

#[tokio::test]
async fn a_coordinator_that_chooses_a_version_nobody_offered_is_left() {
    let mut coordinator = Coordinator::start().await;
    let (_host, _link) = link(&coordinator.addr, hello_now()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome_in(PROTOCOL_MAX + 1, 1, vec![]).await;
    assert!(attach.hear().await.is_none());
}

#[tokio::test]
async fn a_host_of_version_2_is_told_whether_a_coordinator_is_reached_and_one_of_version_1_is_not() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello_now()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    let reach = |attached, lease_ms| to_host::Message::Reach(host::Reach { attached, lease_ms });
    assert_eq!(host.next().await, reach(true, 30_000));
    drop(attach);
    assert_eq!(host.next().await, reach(false, 0));
    coordinator.attach().await.welcome(1, vec![]).await;
    assert_eq!(host.next().await, reach(true, 30_000));

    let (mut old, _link) = link(&coordinator.addr, hello()).await;
    coordinator.attach().await.welcome(1, vec![]).await;
    old.hears_nothing().await;
}

#[tokio::test]
async fn a_host_that_chose_a_version_nobody_offered_gets_another_link() {
    let future = HostHello { version: HOST_PROTOCOL_MAX + 1, ..hello() };
    let (_host, link) = link("127.0.0.1:1", future).await;
    assert!(matches!(soon("the end", link).await.unwrap(), End::Broken(_)));
}
