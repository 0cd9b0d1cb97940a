//! What a session's connections carried, out of counts that begin anew.

use cooper_core::session::{Carried, Traffic};

fn carried(sent: u64, received: u64, connects: u64) -> Carried {
    Carried { sent, received, connects }
}

#[test]
fn every_count_is_added_once_whatever_is_said_again_or_late() {
    let mut traffic = Traffic::default();
    traffic.heard(7, carried(10, 100, 1));
    traffic.heard(7, carried(10, 100, 1));
    traffic.heard(7, carried(30, 150, 2));
    // Late: said before, heard after.
    traffic.heard(7, carried(10, 100, 1));
    traffic.heard(7, carried(30, 150, 2));
    assert_eq!(traffic.total, carried(30, 150, 2));
    // Another host, or another worker: its count begins with 0.
    traffic.heard(9, carried(5, 5, 1));
    assert_eq!(traffic.total, carried(35, 155, 3));
    traffic.heard(9, carried(u64::MAX, 5, 1));
    assert_eq!(traffic.total, carried(u64::MAX, 155, 3));
}
