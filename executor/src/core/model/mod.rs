//! The core against a model of its surroundings, in random orders: an agent with its status update manager, the
//! connections between them, containers, and a scheduler that launches and kills.
//!
//! The agent is modelled after what is known of Mesos' (src/slave/slave.cpp, task_status_update_manager.cpp), not after
//! the core. Orders follow from a seed: `TEPUI_MODEL_SEED=N` replays one, `TEPUI_MODEL_ORDERS=N` sets how many are
//! tried.

mod agent;
mod containers;
mod network;
mod world;

use std::fmt::Write as _;

use world::World;

/// Bugs that are planted between the core and its surroundings, to show that the model would find them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// An acknowledgement is not taken note of.
    DroppedAcknowledgement,
    /// An earlier update is sent anew after the terminal one.
    ResendAfterTerminal,
    /// A task ends twice.
    SecondTerminal,
    /// An update is never sent.
    LostUpdate,
    /// A kill does nothing.
    IgnoredKill,
    /// The SIGKILL after the grace period does not come.
    NoEscalation,
    /// SUBSCRIBE leaves out the tasks that the agent may not know.
    ForgottenTasks,
}

/// splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// With a probability of one in `n`.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How an order went: what was violated, and how much happened in it.
fn run(seed: u64, bug: Bug, is_traced: bool) -> (Result<(), String>, World) {
    let mut world = World::new(Random(seed), bug, is_traced);
    let result = world.run();
    (result, world)
}

fn explain(seed: u64, bug: Bug, violation: &str) -> String {
    let (_, world) = run(seed, bug, true);
    let mut text = format!("{violation}\nreplay with TEPUI_MODEL_SEED={seed}\n");
    for line in world.trace.iter().rev().take(60).rev() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

#[test]
fn no_order_of_events_breaks_a_promise() {
    let (first, orders) = match number("TEPUI_MODEL_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("TEPUI_MODEL_ORDERS").unwrap_or(20_000)),
    };
    let (mut tasks, mut reconnects, mut kills) = (0, 0, 0);
    for seed in first..first + orders {
        let (result, world) = run(seed, Bug::None, false);
        if let Err(violation) = result {
            panic!("{}", explain(seed, Bug::None, &violation));
        }
        tasks += world.agent.tasks.len();
        reconnects += world.subscriptions;
        kills += world.kills;
    }
    println!(
        "{orders} orders from seed {first}: {tasks} tasks, {kills} kills, {reconnects} subscriptions"
    );
    if orders > 1000 {
        assert!(
            tasks > 1000 && reconnects > 1000 && kills > 1000,
            "the orders hardly do anything"
        );
    }
}

#[test]
fn every_planted_bug_is_found() {
    for bug in [
        Bug::DroppedAcknowledgement,
        Bug::ResendAfterTerminal,
        Bug::SecondTerminal,
        Bug::LostUpdate,
        Bug::IgnoredKill,
        Bug::NoEscalation,
        Bug::ForgottenTasks,
    ] {
        let found = (1..2_000).find_map(|seed| Some((seed, run(seed, bug, false).0.err()?)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?} is found in order {seed}: {violation}");
    }
}
