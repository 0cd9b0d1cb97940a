//! `make repair-cases`: works through the repair cases and prints what came of each. Arguments are names or parts of
//! names. Then a sample is repaired while processes are killed: `--no-kills` leaves that out, `--only-kills` the rest;
//! `--kill=PART` is one or some of them, as "worker at rollback".

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
};

use cooper_tests::{
    Cluster, Setup,
    cases::{self, Case, End, Verdict},
    docker,
};

/// Cases at once: what a case mostly does is to wait for an engine on as many cores.
const AT_ONCE: usize = 2;

fn main() -> ExitCode {
    let (flags, wanted): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let kill = flags.iter().find_map(|flag| flag.strip_prefix("--kill="));
    let known = |flag: &str| ["--no-kills", "--only-kills"].contains(&flag) || flag.starts_with("--kill=");
    if let Some(unknown) = flags.iter().find(|flag| !known(flag)) {
        eprintln!("no option {unknown}; there are --no-kills, --only-kills, --kill=PART, and names of cases");
        return ExitCode::from(2);
    }
    if !docker::wanted("repair cases") {
        return ExitCode::SUCCESS;
    }
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let mut all = Case::all();
    all.retain(|case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part.as_str())));
    let cluster = Setup::compose().start();

    // What it says stands in the table.
    panic::set_hook(Box::new(|_| {}));
    let mut table = Table::default();
    if !has("--only-kills") && kill.is_none() {
        println!("{HEADING}");
        work(&all, &cluster, &mut table);
        table.totals();
    }
    if !has("--no-kills") {
        let killed: Vec<&Case> = all.iter().filter(|case| case.killed).collect();
        table.kills_wrong = kills(&killed, kill.unwrap_or_default(), &cluster);
    }
    if table.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const HEADING: &str = "case                             ecosystem          end                 rule                          attempts  lines  seconds";

#[derive(Default)]
struct Table {
    rows: Vec<(Case, Verdict)>,
    kills_wrong: usize,
}

/// What a panic says: the case is not as it says, or a command never ended.
fn caught(work: impl FnOnce() -> Verdict) -> Verdict {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|said| {
        let text = said.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| said.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        Verdict {
            end: End::Wrong,
            problems: vec![text.to_owned()],
            outside: vec![],
            rule: String::new(),
            attempts: 0,
            lines: 0,
            ms: 0,
        }
    })
}

/// Several at once, each printed as it ends.
fn work(cases: &[Case], cluster: &Cluster, table: &mut Table) {
    let left: Mutex<VecDeque<&Case>> = Mutex::new(cases.iter().collect());
    let done = Mutex::new(&mut table.rows);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(case) = next else { break };
                    let verdict = caught(|| cases::work(case, &cluster.cooper()));
                    print(&case.name, &case.ecosystem, &verdict);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((case.clone(), verdict));
                }
            });
        }
    });
}

/// One after the other: a kill is felt by whatever else goes on. Those whose names have `part` in them.
fn kills(cases: &[&Case], part: &str, cluster: &Cluster) -> usize {
    println!("\nkilled with SIGKILL at a step:\n{HEADING}");
    let (mut count, mut wrong) = (0, 0);
    type Kill = fn(&Case, &Cluster, &str, &str) -> Option<Verdict>;
    let kinds: [(&str, Kill); 3] =
        [("", cases::kill), ("retry, ", cases::kill_retry), ("undo, ", cases::kill_undo)];
    for case in cases {
        for (kind, kill) in kinds.into_iter().filter(|(kind, _)| kind.is_empty() || case.fixable()) {
            for role in cases::ROLES {
                for step in cases::STEPS {
                    let name = format!("{kind}{role} at {step}");
                    if !name.contains(part) {
                        continue;
                    }
                    let mut met = true;
                    let verdict = caught(|| {
                        let verdict = kill(case, cluster, role, step);
                        met = verdict.is_some();
                        verdict.unwrap_or_else(nothing)
                    });
                    if met {
                        count += 1;
                        wrong += usize::from(verdict.end == End::Wrong);
                        print(&name, &case.name, &verdict);
                    }
                }
            }
        }
    }
    println!("{count} kills, {wrong} that ended in a state that is not true, fixed or as it was");
    wrong
}

/// For a step that a run has not.
fn nothing() -> Verdict {
    Verdict {
        end: End::RefusedRightly,
        problems: vec![],
        outside: vec![],
        rule: String::new(),
        attempts: 0,
        lines: 0,
        ms: 0,
    }
}

fn print(name: &str, ecosystem: &str, verdict: &Verdict) {
    let mut text = format!(
        "{name:<32} {ecosystem:<18} {:<19} {:<29} {:>8}  {:>5}  {:>7.1}",
        verdict.end.as_str(),
        verdict.rule,
        verdict.attempts,
        verdict.lines,
        verdict.ms as f64 / 1000.0
    );
    for problem in &verdict.problems {
        text += &format!("\n    {}", problem.replace('\n', "\n    "));
    }
    println!("{text}");
}

impl Table {
    fn count(&self, counts: impl Fn(&Case, &Verdict) -> bool) -> usize {
        self.rows.iter().filter(|(case, verdict)| counts(case, verdict)).count()
    }

    /// Fixable cases and how many of them are fixed, the others and how many of them ended as they have to.
    fn ends(&self) -> [usize; 4] {
        [
            self.count(|case, _| case.fixable()),
            self.count(|case, verdict| case.fixable() && verdict.end == End::Fixed),
            self.count(|case, _| !case.fixable()),
            self.count(|case, verdict| !case.fixable() && verdict.end != End::Wrong),
        ]
    }

    fn totals(&self) {
        let [fixable, fixed, others, right] = self.ends();
        let percent = |part: usize, all: usize| part * 100 / all.max(1);
        let first = self.count(|_, verdict| verdict.end == End::Fixed && verdict.attempts == 1);
        let outside: usize = self.rows.iter().map(|(_, verdict)| verdict.outside.len()).sum();
        println!(
            "\nfixable   {fixed} of {fixable} fixed ({} %), {first} of them with the first attempt",
            percent(fixed, fixable)
        );
        println!(
            "others    {right} of {others} refused or rolled back as they have to be ({} %)",
            percent(right, others)
        );
        println!("outside   {outside} files changed that the oracles do not allow");
    }

    fn passed(&self) -> bool {
        let [fixable, fixed, others, right] = self.ends();
        let outside = self.rows.iter().any(|(_, verdict)| !verdict.outside.is_empty());
        fixed * 10 >= fixable * 9 && right == others && !outside && self.kills_wrong == 0
    }
}
