//! End to end: the built binary, real processes, real Docker, real clients. Everything is in one module, so that
//! scripts/test.sh can tell these tests from the others by name.

mod e2e {
    mod again;
    mod approvals;
    mod artifacts;
    mod attempts;
    mod audit;
    mod checkpoint;
    mod config;
    mod connections;
    mod container;
    mod contexts;
    mod contract;
    mod diagnose;
    mod documented;
    mod drain;
    mod durable;
    mod executions;
    mod files;
    mod fleet;
    mod hibernate;
    mod idempotency;
    mod interactive;
    mod json;
    mod matrix;
    mod mcp;
    mod model;
    mod network;
    mod notify;
    mod openapi;
    mod packages;
    mod pause;
    mod policy;
    mod ports;
    mod python_client;
    mod pythons;
    mod repair;
    mod repair_cases;
    mod rest;
    mod resume;
    mod rollback;
    mod rolling;
    mod scheduling;
    mod secrets;
    mod sessions;
    mod stacks;
    mod store;
    mod templates;
    mod tenants;
    mod tls;
    mod triggers;
    mod up;
    mod versions;
}
