//! End to end: real processes under faults. In a module of this name, so that scripts/test.sh finds it.

mod e2e {
    mod chaos;
}
