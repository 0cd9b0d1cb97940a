//! The representative part of `tests/repair-cases`; `make repair-cases` works through all of them.

use cooper_tests::{
    cases::{self, Case, End},
    cluster::shared_compose,
    docker,
};

/// Repairs a case and compares everything with its oracle (I6, I7, I8).
fn ends_as_it_has_to(name: &str) {
    if !docker::wanted(name) {
        return;
    }
    let verdict = cases::work(&Case::named(name), &shared_compose().cooper());
    assert_eq!((verdict.end == End::Wrong, &*verdict.outside), (false, &[][..]), "{:#?}", verdict.problems);
}

macro_rules! quick {
    ($($test:ident = $case:literal,)*) => {
        $(#[test]
        fn $test() {
            ends_as_it_has_to($case);
        })*

        #[test]
        fn every_quick_case_is_a_test_and_every_case_can_be_read() {
            let all = Case::all();
            let quick: Vec<&str> = all.iter().filter(|case| case.quick).map(|case| &*case.name).collect();
            let mut tested = vec![$($case,)*];
            tested.sort_unstable();
            assert_eq!(quick, tested);
        }
    };
}

quick! {
    a_missing_module_is_required = "pip-module-missing",
    a_missing_command_is_installed = "apt-command-missing",
    a_lost_executable_bit_is_given_back = "entrypoint-not-executable",
    a_crash_that_fools_up_wait_and_that_nothing_explains_is_refused = "health-dies-after-wait",
    a_fix_that_builds_and_does_not_live_is_rolled_back = "rollback-second-fault",
    what_a_log_tells_to_do_is_not_done = "injection-only",
    a_protected_service_is_repaired_once_somebody_approves = "protected-service",
}
