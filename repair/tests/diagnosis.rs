//! What diagnosis must and must not propose, case by case.
#![allow(clippy::unwrap_used)]

use cooper_repair::compose::Model;
use cooper_repair::diagnosis::{Phase, Remedy, State, unpinned};
use cooper_repair::plan::{self, StepKind};
use cooper_repair::{Class, Decision, Diagnosis, Evidence, NoDiagnosis, RepairPlan, RuleSet, diagnose};

const MODEL: &str = "{name: p, services: {web: {build: {context: /s/web}}, db: {image: 'postgres:16'}}}";

struct Case(Evidence);

impl Case {
    fn runtime(log: &str) -> Self {
        Self(Evidence {
            container_log: log.to_owned(),
            ..Evidence::new("web", Model::from_config(MODEL).unwrap(), Phase::Runtime)
        })
    }

    fn build(log: &str) -> Self {
        let mut case = Self::runtime("");
        case.0.phase = Phase::Build;
        case.0.build_log = log.to_owned();
        case
    }

    fn asked(instruction: &str) -> Self {
        let mut case = Self::runtime("");
        case.0.instruction = Some(instruction.to_owned());
        case
    }

    fn file(mut self, path: &str, text: &str) -> Self {
        self.0.files.insert(path.to_owned(), text.to_owned());
        self
    }

    fn model(mut self, model: &str) -> Self {
        self.0.model = Model::from_config(model).unwrap();
        self
    }

    fn result(&self) -> Result<Diagnosis, NoDiagnosis> {
        diagnose(RuleSet::builtin(), &self.0)
    }

    fn diagnosis(&self) -> Diagnosis {
        self.result().unwrap()
    }

    /// Path and new text of the only edit.
    fn patched(&self) -> (String, String) {
        let diagnosis = self.diagnosis();
        let [edit] = &diagnosis.edits[..] else { panic!("not one edit: {diagnosis:?}") };
        (edit.path.clone(), edit.new_content.clone())
    }
}

const YAML: &str = "ModuleNotFoundError: No module named 'yaml'\n";
const REQUIREMENTS: &str = "FROM python:3.11\nWORKDIR /app\nCOPY . .\nRUN pip install -r requirements.txt\n";

#[test]
fn a_requirement_goes_into_the_file_that_the_image_installs_from() {
    let dockerfile = "FROM python:3.11\nCOPY deps/prod.txt /tmp/requirements.txt\nRUN pip install -r /tmp/requirements.txt\n";
    let case = Case::runtime(YAML)
        .file("Dockerfile", dockerfile)
        .file("requirements.txt", "")
        .file("deps/prod.txt", "a");
    assert_eq!(case.patched(), ("deps/prod.txt".to_owned(), "a\nPyYAML\n".to_owned()));
}

#[test]
fn what_is_added_is_pinned_to_the_version_that_the_image_would_install() {
    let mut case = Case::runtime(YAML).file("Dockerfile", REQUIREMENTS).file("requirements.txt", "flask\n");
    assert_eq!(unpinned(RuleSet::builtin(), &case.0), ["PyYAML"]);
    case.0.versions.insert("pyyaml".to_owned(), "6.0.3".to_owned());
    assert_eq!(case.patched().1, "flask\nPyYAML==6.0.3\n");
    assert!(unpinned(RuleSet::builtin(), &case.0).is_empty());
    let mut asked =
        Case::asked("add package rich").file("Dockerfile", REQUIREMENTS).file("requirements.txt", "");
    asked.0.versions.insert("rich".to_owned(), "1.2 --index-url x".to_owned());
    assert!(
        asked.result().is_err() || asked.diagnosis().edits.is_empty(),
        "what is no version is not written"
    );
}

#[test]
fn a_requirement_goes_to_the_stage_that_the_final_image_copies_from() {
    let dockerfile = "FROM python:3.11 AS builder\nRUN pip install flask\nFROM python:3.11 AS tools\nRUN pip install black\n\
        FROM python:3.11-slim\nCOPY --from=builder /usr /usr\n";
    let expected = dockerfile.replace("flask", "flask PyYAML");
    assert_eq!(
        Case::runtime(YAML).file("Dockerfile", dockerfile).patched(),
        ("Dockerfile".to_owned(), expected)
    );
}

#[test]
fn a_project_gets_a_dependency_of_its_own() {
    let dockerfile = "FROM python:3.11\nCOPY . /app\nWORKDIR /app\nRUN pip install .\n";
    let project = "[project]\nname = \"x\"\ndependencies = [\"flask\"]\n";
    let case = Case::runtime(YAML).file("Dockerfile", dockerfile).file("pyproject.toml", project);
    assert!(case.patched().1.contains("[\"flask\", \"PyYAML\"]"));
    assert_eq!(case.diagnosis().class, Class::Auto);
    let locked = case.file("uv.lock", "").diagnosis();
    assert_eq!(locked.class, Class::Approve, "somebody has to lock it again");
    assert!(locked.edits[0].description.contains("uv.lock"));
}

#[test]
fn a_module_of_the_service_itself_is_never_installed_from_an_index() {
    for path in ["helpers.py", "src/helpers/__init__.py"] {
        let case = Case::runtime("ModuleNotFoundError: No module named 'helpers.text'\n");
        let case = case.file("Dockerfile", REQUIREMENTS).file("requirements.txt", "").file(path, "");
        let diagnosis = case.diagnosis();
        assert_eq!((diagnosis.remedy, diagnosis.class), (Remedy::Escalate, Class::Escalate));
        assert!(diagnosis.cause.contains("the service's own code"), "{}", diagnosis.cause);
    }
}

#[test]
fn a_module_of_ones_own_is_copied_where_its_neighbours_are_copied_one_by_one() {
    let log = "ModuleNotFoundError: No module named 'words'\n";
    let case = |copy: &str| {
        let dockerfile = format!("FROM python:3.11\nWORKDIR /app\n{copy}\nCMD [\"python\", \"app.py\"]\n");
        Case::runtime(log).file("Dockerfile", &dockerfile).file("src/app.py", "").file("src/words.py", "")
    };
    for (copy, line) in [
        ("COPY src/app.py .", "COPY src/words.py words.py"),
        ("COPY src/app.py /srv/", "COPY src/words.py /srv/words.py"),
        ("COPY src/app.py lib/main.py", "COPY src/words.py lib/words.py"),
    ] {
        let (path, text) = case(copy).patched();
        assert!(path == "Dockerfile" && text.contains(line), "{text}");
    }
    // What may be in the image already is missing for another reason.
    for copy in ["COPY src .", "COPY . .", "COPY src/*.py .", "COPY src/app.py src/words.py /elsewhere/"] {
        assert_eq!(case(copy).diagnosis().remedy, Remedy::Escalate, "{copy}");
    }
}

#[test]
fn an_unknown_module_is_only_proposed() {
    let case = Case::runtime("ModuleNotFoundError: No module named 'left_pad'\n");
    let case = case.file("Dockerfile", REQUIREMENTS).file("requirements.txt", "");
    assert_eq!((case.diagnosis().class, case.patched().1.as_str()), (Class::Approve, "left-pad\n"));
}

#[test]
fn a_module_of_python_itself_is_not_installed() {
    let case =
        Case::runtime("ModuleNotFoundError: No module named 'tkinter'\n").file("Dockerfile", REQUIREMENTS);
    assert!(case.diagnosis().cause.contains("part of Python itself"));
}

#[test]
fn a_requirement_that_is_there_already_asks_for_a_build() {
    let case = Case::runtime(YAML).file("Dockerfile", REQUIREMENTS).file("requirements.txt", "pyyaml\n");
    let diagnosis = case.diagnosis();
    assert_eq!(diagnosis.remedy, Remedy::Escalate);
    assert!(diagnosis.cause.contains("build it again"), "{}", diagnosis.cause);
    assert!(matches!(
        RepairPlan::new("s", &case.0.model, "web", 1, &diagnosis),
        Err(plan::Error::NoRemedy { .. })
    ));
}

#[test]
fn an_image_that_is_pulled_is_not_changed() {
    let mut case = Case::runtime(YAML);
    case.0.service = "db".to_owned();
    assert!(case.diagnosis().cause.contains("not built here"));
}

#[test]
fn a_shared_library_is_installed_in_the_final_stage() {
    let dockerfile = "FROM python:3.11 AS builder\nRUN true\nFROM python:3.11-slim\nCOPY . .\n";
    let log = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory\n";
    let (_, text) = Case::runtime(log).file("Dockerfile", dockerfile).patched();
    assert!(text.contains("FROM python:3.11-slim\nRUN apt-get update \\\n && apt-get install -y --no-install-recommends libgl1 libglib2.0-0"), "{text}");
}

#[test]
fn a_build_target_is_the_stage_that_is_repaired() {
    let model =
        "{name: p, services: {web: {build: {context: /s, dockerfile: docker/app.Dockerfile, target: one}}}}";
    let dockerfile = "FROM debian AS one\nCOPY . .\nFROM debian AS two\nCOPY . .\n";
    let log = "app: error while loading shared libraries: libpq.so.5: cannot open shared object file\n";
    let (path, text) = Case::runtime(log).model(model).file("docker/app.Dockerfile", dockerfile).patched();
    assert_eq!(path, "docker/app.Dockerfile");
    assert!(text.find("libpq5").unwrap() < text.find("FROM debian AS two").unwrap());
}

#[test]
fn packages_go_into_the_stage_that_fails() {
    let dockerfile = "FROM debian AS one\nCOPY . .\nRUN make\nFROM debian\nCOPY . .\nCMD [\"x\"]\n";
    let log = "#7 [one 3/3] RUN make\n#7 0.2 /bin/sh: 1: make: not found\n#7 ERROR: exit code: 127\n------\n > [one 3/3] RUN make:\n------\n";
    let (_, text) = Case::build(log).file("Dockerfile", dockerfile).patched();
    assert!(text.starts_with("FROM debian AS one\nRUN apt-get update"), "{text}");
}

#[test]
fn a_base_image_that_is_not_debian_is_escalated() {
    let case = Case::build("/bin/sh: git: not found\n")
        .file("Dockerfile", "FROM python:3.11-alpine\nRUN git clone x\n");
    assert!(case.diagnosis().cause.contains("not Debian's"));
}

#[test]
fn a_command_that_comes_with_a_python_distribution_is_required() {
    let log = "exec: \"gunicorn\": executable file not found in $PATH\n";
    let case = Case::runtime(log).file("Dockerfile", REQUIREMENTS).file("requirements.txt", "flask\n");
    assert_eq!(case.patched().1, "flask\ngunicorn\n");
}

#[test]
fn a_command_nobody_knows_is_escalated_with_its_cause() {
    let diagnosis = Case::build("/bin/sh: 1: frobnicate: not found\n")
        .file("Dockerfile", "FROM debian\nRUN x\n")
        .diagnosis();
    assert_eq!(diagnosis.class, Class::Escalate);
    assert!(
        diagnosis.cause.starts_with("The command frobnicate is not installed in the image. Not repaired: ")
    );
}

#[test]
fn a_package_with_a_new_name_is_renamed_once_the_lists_are_updated() {
    let dockerfile = "FROM debian\nRUN apt-get update && apt-get install -y netcat curl\n";
    let log = "#5 1.0 E: Package 'netcat' has no installation candidate\n#5 ERROR: x\nDockerfile:2\n   2 | >>> RUN apt-get update\n";
    let (_, text) = Case::build(log).file("Dockerfile", dockerfile).patched();
    assert_eq!(text, dockerfile.replace("netcat", "netcat-openbsd"));
}

#[test]
fn a_log_cannot_put_shell_into_a_file() {
    for log in
        ["ModuleNotFoundError: No module named 'a; curl x | sh'\n", "/bin/sh: 1: $(reboot): not found\n"]
    {
        let case = Case::runtime(log).file("Dockerfile", REQUIREMENTS).file("requirements.txt", "");
        assert!(case.result().is_err(), "{log}");
    }
}

#[test]
fn a_node_module_is_proposed_where_no_lock_file_says_otherwise() {
    let manifest = "{\n  \"dependencies\": {\n    \"express\": \"^4\"\n  }\n}\n";
    let case = Case::runtime("Error: Cannot find module 'lodash/fp'\n")
        .file("Dockerfile", "FROM node\n")
        .file("package.json", manifest);
    assert_eq!(case.diagnosis().class, Class::Approve);
    assert!(case.patched().1.contains("\"^4\",\n    \"lodash\": \"*\"\n"));
    assert!(case.file("package-lock.json", "{}").diagnosis().cause.contains("package-lock.json fixes"));
}

#[test]
fn a_passing_fault_is_built_again_and_a_full_disk_is_a_persons() {
    let case =
        Case::build("#3 ERROR: dial tcp 192.0.2.1:443: i/o timeout\n").file("Dockerfile", "FROM debian\n");
    let diagnosis = case.diagnosis();
    assert_eq!((diagnosis.remedy, diagnosis.class), (Remedy::Rebuild, Class::Retry));
    let plan = RepairPlan::new("s", &case.0.model, "web", 1, &diagnosis).unwrap();
    assert_eq!(plan.steps[0].kind, StepKind::Build);
    assert_eq!(plan.decision, Decision::Allowed);
    assert_eq!(Case::build("write /x: no space left on device\n").diagnosis().remedy, Remedy::Escalate);
}

#[test]
fn a_container_killed_for_its_memory_is_not_patched() {
    let mut case = Case::runtime("");
    case.0.state =
        Some(State { status: "exited".into(), exit_code: 137, oom_killed: true, ..State::default() });
    assert_eq!(case.diagnosis().rule_id, "container.out-of-memory");
}

#[test]
fn a_healthcheck_that_nobody_answers_tells_of_the_service_and_not_of_a_peer() {
    let mut case = Case::runtime("listening on 9000\n");
    let said = "ConnectionRefusedError: [Errno 111] Connection refused\n".to_owned();
    case.0.state =
        Some(State { status: "running".to_owned(), health_output: said.clone(), ..State::default() });
    assert!(case.result().is_err(), "what does not run answers nobody");
    case.0.phase = Phase::Health;
    assert_eq!(case.diagnosis().rule_id, "health.refused");
    case.0.container_log = said;
    case.0.state = None;
    assert_eq!(case.diagnosis().rule_id, "order.peer-refuses");
}

#[test]
fn instructions_are_followed_without_any_log() {
    let files = |case: Case| case.file("Dockerfile", REQUIREMENTS).file("requirements.txt", "");
    assert_eq!(files(Case::asked("add package pyyaml")).patched().1, "pyyaml\n");
    assert_eq!(
        files(Case::asked("Please add the package flask==3.0.3 to web.")).patched().1,
        "flask==3.0.3\n"
    );
    assert_eq!(files(Case::asked("add package left-pad")).diagnosis().class, Class::Approve);
    assert!(files(Case::asked("install apt package git")).patched().1.contains("recommends git"));
    let mut fix = files(Case::asked("fix the build"));
    fix.0.container_log = YAML.to_owned();
    assert_eq!(fix.diagnosis().rule_id, "python.module-missing");
}

#[test]
fn what_people_ask_for_is_understood_however_they_say_it() {
    let phrasings: &[(&str, &[&str])] = &[
        (
            "instruction.add-package",
            &[
                "add package pyyaml",
                "Add the package pyyaml.",
                "please add package pyyaml to web",
                "install package pyyaml",
                "install the python package pyyaml in web",
                "install pip package pyyaml in the web service",
                "add the missing dependency pyyaml",
                "add library pyyaml to the service web",
                "require package pyyaml",
                "Please install the missing python module pyyaml for web.",
                "add package pyyaml==6.0.2",
            ],
        ),
        (
            "instruction.install-apt-package",
            &[
                "install apt package git",
                "install the system package git",
                "add debian package git to web",
                "please install os package git in the web service",
                "add the missing system library git",
                "Install the apt-package git.",
            ],
        ),
        (
            "instruction.remove-package",
            &[
                "remove package flask",
                "remove the package flask from web",
                "uninstall python package flask",
                "drop the dependency flask in the web service",
                "please delete requirement flask.",
            ],
        ),
        (
            "instruction.pin-package",
            &[
                "pin package flask to 3.0.3",
                "pin the python package flask at 3.0.3 in web",
                "pin dependency flask==3.0.3",
                "upgrade package flask to 3.0.3",
                "update the package flask to version 3.0.3",
                "Please upgrade the dependency flask to v3.0.3 in the web service.",
                "downgrade package flask to 3.0.3",
                "bump package flask 3.0.3",
                "set package flask to 3.0.3 for web",
                "change the requirement flask to 3.0.3",
                "use version 3.0.3 of flask",
                "use version 3.0.3 of the package flask in web",
                "install version 3.0.3 of flask",
            ],
        ),
        (
            "instruction.restart",
            &[
                "restart",
                "restart web",
                "please restart the service",
                "bounce the web service",
                "Restart it.",
            ],
        ),
        (
            "python.module-missing",
            &[
                "fix",
                "fix it",
                "fix web",
                "fix the build",
                "repair the failing build",
                "please repair the web service",
                "heal the crashing container",
                "mend the broken image",
                "diagnose web",
            ],
        ),
    ];
    assert!(phrasings.iter().map(|(_, all)| all.len()).sum::<usize>() >= 40);
    for (rule, all) in phrasings {
        for said in *all {
            let mut case =
                Case::asked(said).file("Dockerfile", REQUIREMENTS).file("requirements.txt", "flask==2.0.0\n");
            case.0.container_log = YAML.to_owned();
            let diagnosis = case.result().unwrap_or_else(|none| panic!("{said}: {none}"));
            assert_eq!(diagnosis.rule_id, *rule, "{said}");
            if *rule == "instruction.pin-package" {
                assert_eq!(diagnosis.edits[0].new_content, "flask==3.0.3\n", "{said}");
            }
        }
    }
}

#[test]
fn what_a_person_has_to_say_more_of_is_asked_for() {
    let case = Case::asked("upgrade package flask")
        .file("Dockerfile", REQUIREMENTS)
        .file("requirements.txt", "flask\n");
    assert!(case.result().unwrap_err().to_string().contains("say which version"));
    let removed = Case::asked("remove package flask")
        .file("Dockerfile", REQUIREMENTS)
        .file("requirements.txt", "flask\n");
    assert_eq!((removed.diagnosis().class, removed.patched().1.as_str()), (Class::Approve, ""));
}

#[test]
fn a_restart_that_is_asked_for_is_a_plan_without_edits() {
    let case = Case::asked("restart web");
    let diagnosis = case.diagnosis();
    assert!(diagnosis.edits.is_empty());
    let plan = RepairPlan::new("s", &case.0.model, "web", 1, &diagnosis).unwrap();
    let kinds: Vec<_> = plan.steps.iter().map(|step| step.kind).collect();
    assert_eq!((kinds, plan.build), (vec![StepKind::Restart, StepKind::Verify], None));
}

#[test]
fn an_instruction_of_another_form_is_refused_with_the_forms_there_are() {
    for instruction in ["make it fast", "add package x; rm -rf /", "restart db", "add package a b"] {
        assert!(Case::asked(instruction).result().is_err(), "{instruction}");
    }
    let refused = Case::asked("make it fast").result().unwrap_err().to_string();
    assert!(refused.contains("add package PACKAGE [to SERVICE]") && refused.contains("restart"), "{refused}");
}

/// A build log as BuildKit prints it, whose step is the instruction at this line of the Dockerfile.
fn failed_at(dockerfile: &str, line: usize, said: &str) -> String {
    let instruction = dockerfile.lines().nth(line - 1).unwrap();
    format!(
        "#8 [web 3/5] {instruction}\n#8 0.512 {said}\n#8 ERROR: process \"/bin/sh -c x\" did not complete successfully: \
         exit code: 1\n------\n > [web 3/5] {instruction}:\n0.512 {said}\n------\nDockerfile:{line}\n--------------------\n   \
         {line} | >>> {instruction}\n--------------------\n"
    )
}

#[test]
fn a_python_that_belongs_to_the_distribution_gets_a_virtual_environment() {
    let file = "FROM python:3.11-slim\nCOPY requirements.txt .\nRUN pip install -r requirements.txt\nCMD [\"python\"]\n";
    let log = failed_at(file, 3, "error: externally-managed-environment");
    let (path, new) = Case::build(&log).file("Dockerfile", file).patched();
    assert_eq!(path, "Dockerfile");
    assert!(
        new.contains("python3 -m venv /opt/venv\nENV PATH=/opt/venv/bin:$PATH\nRUN pip install"),
        "{new}"
    );
}

#[test]
fn a_requirements_file_is_copied_before_it_is_read() {
    let file = "FROM python:3.11-slim\nWORKDIR /app\nRUN pip install -r requirements.txt\nCOPY . .\n";
    let said =
        "ERROR: Could not open requirements file: [Errno 2] No such file or directory: 'requirements.txt'";
    let case =
        Case::build(&failed_at(file, 3, said)).file("Dockerfile", file).file("requirements.txt", "flask\n");
    assert_eq!(case.patched().1, file.replace("RUN", "COPY requirements.txt requirements.txt\nRUN"));
    let without = Case::build(&failed_at(file, 3, said)).file("Dockerfile", file);
    assert_eq!(without.diagnosis().remedy, Remedy::Escalate);
}

#[test]
fn a_copied_file_is_found_under_its_right_name_or_taken_back_from_dockerignore() {
    let file = "FROM python:3.11-slim\nWORKDIR /app\nCOPY requirments.txt ./\nCMD [\"python\"]\n";
    let said = "failed to calculate checksum of ref 3e::9k: \"/requirments.txt\": not found";
    let log = failed_at(file, 3, said);
    let case = Case::build(&log).file("Dockerfile", file).file("requirements.txt", "").file("app.py", "");
    assert_eq!(case.patched().1, file.replace("requirments", "requirements"));
    let no_line =
        Case::build(&format!("#8 ERROR: {said}\n")).file("Dockerfile", file).file("requirements.txt", "");
    assert_eq!(
        no_line.patched().1,
        file.replace("requirments", "requirements"),
        "not every builder says the line"
    );

    let moved = Case::build(&log).file("Dockerfile", file).file("deps/requirments.txt", "");
    assert_eq!(moved.patched().1, file.replace("COPY ", "COPY deps/"));

    let ignored = Case::build(&log)
        .file("Dockerfile", file)
        .file("requirments.txt", "")
        .file(".dockerignore", "*.txt\n");
    assert_eq!(ignored.patched(), (".dockerignore".to_owned(), "*.txt\n!requirments.txt\n".to_owned()));

    let two =
        Case::build(&log).file("Dockerfile", file).file("requirements.txt", "").file("requirment.txt", "");
    assert_eq!(two.diagnosis().remedy, Remedy::Escalate, "either could be meant");
}

#[test]
fn a_directory_is_given_to_the_user_who_writes_there_unless_it_is_a_mount() {
    let file = "FROM python:3.11-slim\nRUN useradd app\nUSER app\nCMD [\"python\"]\n";
    let log = "PermissionError: [Errno 13] Permission denied: '/data/app.db'\n";
    let case = Case::runtime(log).file("Dockerfile", file);
    assert_eq!(case.patched().1, file.replace("USER", "RUN mkdir -p /data && chown -R app /data\nUSER"));
    let mounted = Case::runtime(log).file("Dockerfile", file).model(
        "{name: p, services: {web: {build: {context: /s/web}, volumes: [{type: bind, source: /s/data, target: /data}]}}}",
    );
    assert_eq!(mounted.diagnosis().remedy, Remedy::Escalate);
    let as_root = Case::runtime(log).file("Dockerfile", "FROM python:3.11-slim\nCMD x\n");
    assert_eq!(as_root.diagnosis().remedy, Remedy::Escalate);
}

const WIRED: &str = "services:
  web:
    build: ./web
    depends_on: [db]
  db:
    image: postgres:16
    healthcheck: {test: [CMD, pg_isready]}
";
const WIRED_MODEL: &str =
    "{name: p, services: {web: {build: {context: /s/web}, depends_on: {db: {condition: service_started}}},
    db: {image: 'postgres:16', healthcheck: {test: [CMD, pg_isready]}}}}";

impl Case {
    fn stack_file(mut self, path: &str, text: &str) -> Self {
        self.0.stack_files.insert(path.to_owned(), text.to_owned());
        self
    }
}

#[test]
fn a_service_that_started_too_early_waits_for_the_healthy_one_after_an_approval() {
    for log in [
        "dial tcp 172.18.0.3:5432: connect: connection refused",
        "connection to server at \"db\" (172.18.0.2), port 5432 failed: Connection refused",
    ] {
        let case = Case::runtime(log).model(WIRED_MODEL).stack_file("compose.yaml", WIRED);
        let diagnosis = case.diagnosis();
        assert_eq!((diagnosis.remedy, diagnosis.class), (Remedy::Patch, Class::Approve), "{diagnosis:?}");
        assert!(diagnosis.edits[0].new_content.contains("condition: service_healthy"));
        let plan = RepairPlan::new("s", &case.0.model, "web", 1, &diagnosis).unwrap();
        let kinds: Vec<_> = plan.steps.iter().map(|step| step.kind).collect();
        assert_eq!(kinds, [StepKind::Patch, StepKind::Restart, StepKind::Verify, StepKind::Promote]);
        assert!(plan.build.is_none() && matches!(plan.decision, Decision::NeedsApproval { .. }));
    }
    // Nobody can be waited for who says nothing of his health.
    let model = WIRED_MODEL.replace(", healthcheck: {test: [CMD, pg_isready]}", "");
    let log = "dial tcp 172.18.0.3:5432: connect: connection refused";
    let case = Case::runtime(log).model(&model).stack_file("compose.yaml", WIRED);
    assert_eq!(case.diagnosis().remedy, Remedy::Escalate);
}

#[test]
fn a_variable_gets_the_examples_value_unless_that_is_a_secret_or_a_placeholder() {
    let wired = |log: &str, example: &str| {
        let case = Case::runtime(log).model(WIRED_MODEL).stack_file("compose.yaml", WIRED);
        case.stack_file(".env.example", example).diagnosis()
    };
    let found = wired("KeyError: 'CACHE_SIZE'", "# sizes\nexport CACHE_SIZE='64 MB' # each\n");
    assert!(found.edits[0].new_content.contains("CACHE_SIZE: \"64 MB\""), "{found:?}");
    for (name, value) in [
        ("API_TOKEN", "abc"),
        ("BASE_URL", "http://example.com"),
        ("REGION", "<your region>"),
        ("REGION", "changeme"),
        ("REGION", ""),
    ] {
        let found = wired(&format!("KeyError: '{name}'"), &format!("{name}={value}\n"));
        assert_eq!(found.remedy, Remedy::Escalate, "{name}={value}");
        assert!(found.cause.contains("an operator has to give"), "{}", found.cause);
    }
}

/// A service that retries prints errors that are none.
#[test]
fn what_it_printed_when_it_was_well_explains_no_failure() {
    let retries = "12:00:01 psycopg2.OperationalError: could not connect to server: Connection refused\n";
    let case = Case::runtime(&format!("{retries}ModuleNotFoundError: No module named 'yaml'\n{retries}"));
    let (plain, mut well) = (Case::runtime("ModuleNotFoundError: No module named 'yaml'\n"), case.0.clone());
    well.good_log =
        "11:30:59 psycopg2.OperationalError: could not connect to server: Connection refused\nready\n".into();
    let diagnosis = diagnose(RuleSet::builtin(), &well).unwrap();
    assert_eq!(diagnosis.rule_id, "python.module-missing");
    assert_eq!(diagnosis.fingerprint, plain.diagnosis().fingerprint);
    // A line alone that was there then is no cause now.
    let alone = Evidence { container_log: retries.to_owned(), ..well };
    assert!(diagnose(RuleSet::builtin(), &alone).is_err());
    assert_eq!(Case::runtime(retries).diagnosis().rule_id, "order.peer-refuses");
}
