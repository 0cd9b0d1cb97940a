//! Properties of the cluster and of runs, against whatever a random world does to them.

#[path = "core/cluster.rs"]
mod cluster;
#[path = "core/fleet.rs"]
mod fleet;
#[path = "core/lifetime.rs"]
mod lifetime;
#[path = "core/pythons.rs"]
mod pythons;
#[path = "core/run.rs"]
mod run;
#[path = "core/traffic.rs"]
mod traffic;
