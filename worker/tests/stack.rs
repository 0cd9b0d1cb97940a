//! Steps of a repair on real Docker: the example stack broken, repaired step by step, and brought back from any of them.

mod stack_fixture;

use cooper_repair::step::{HealthClass, Report};
use stack_fixture::{Fixture, STEPS, docker_or_skip};

/// A repair from a broken stack to a healthy one, each step performed twice.
#[test]
fn a_missing_python_package_is_repaired_and_repeating_a_step_changes_nothing() {
    let Some(fixture) = docker_or_skip("python") else { return };
    fixture.up();
    fixture.break_it("missing-python-package");
    fixture.deploy_broken();
    let before = fixture.checkout();
    let neighbour = fixture.container("store");

    let analyzed = fixture.analyze(None);
    let start = analyzed.start.clone().expect("a start record");
    assert_eq!(start.health, HealthClass::Down);
    assert_eq!(start.neighbours.values().collect::<Vec<_>>(), [&neighbour.id]);
    assert_eq!(fixture.analyze(None).start, Some(start.clone()));
    let plan = fixture.plan(&analyzed);
    assert_eq!(fixture.checkout(), before, "nothing is written before the promotion");

    for step in STEPS {
        let reports: Vec<Report> = (0..2).map(|_| fixture.step(step, &plan)).collect();
        for report in &reports {
            assert!(report.ok, "{step}: {} {}\n{}", report.code, report.message, fixture.log());
        }
        match step {
            "build" => {
                assert_eq!(fixture.image("web"), start.image_id, "the service's tag waits for restart")
            }
            "restart" => assert_ne!(fixture.image("web"), start.image_id),
            "promote" => assert!(reports.iter().all(|report| report.promotion == "promoted")),
            "patch" => {
                let mut patched = fixture.copy();
                patched.apply(&reports[1].artifacts[0].content);
                assert_ne!(patched.checkout(), before);
            }
            _ => {}
        }
        if step != "promote" {
            assert_eq!(fixture.checkout(), before, "nothing is written before the promotion");
        }
    }
    assert_eq!(fixture.container("web").health, "healthy");
    assert_eq!(fixture.container("store"), neighbour);
    let mut expected = before.clone();
    let requirements = expected.get_mut("web/requirements.txt").expect("it is there");
    requirements.extend_from_slice(b"PyYAML\n");
    assert_eq!(fixture.checkout(), expected);
    assert_eq!(fixture.run_tags(), Vec::<String>::new(), "only the old image stays named");
    assert_eq!(fixture.image(&fixture.kept()), start.image_id);

    // And all the way back, from the very end, twice.
    for _ in 0..2 {
        let report = fixture.step("rollback", &plan);
        assert!(report.restored, "{}\n{}", report.message, fixture.log());
        assert_eq!(fixture.checkout(), before);
        assert_eq!(fixture.image("web"), start.image_id);
        assert_eq!(fixture.container("store"), neighbour);
    }
}
