//! What goes wrong, when and for how long.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::env::SeededRng;

use crate::cluster::{Cluster, Memory};
use crate::network::Weather;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    CutOneWay,
    CutBothWays,
    Isolate,
    Split,
    CrashWithData,
    CrashWithoutData,
    CrashWithOldData,
    Pause,
    ClockOffset,
    ClockHour,
    ClockDrift,
    ClockStepBack,
    SlowNode,
    Loss,
    Duplication,
    Reordering,
    MembershipLies,
    DiskError,
    DiskLosesWrite,
}

impl Fault {
    pub(crate) const ALL: [Self; 19] = [
        Self::CutOneWay,
        Self::CutBothWays,
        Self::Isolate,
        Self::Split,
        Self::CrashWithData,
        Self::CrashWithoutData,
        Self::CrashWithOldData,
        Self::Pause,
        Self::ClockOffset,
        Self::ClockHour,
        Self::ClockDrift,
        Self::ClockStepBack,
        Self::SlowNode,
        Self::Loss,
        Self::Duplication,
        Self::Reordering,
        Self::MembershipLies,
        Self::DiskError,
        Self::DiskLosesWrite,
    ];

    pub(crate) const fn loses_memory(self) -> bool {
        matches!(
            self,
            Self::CrashWithData
                | Self::CrashWithoutData
                | Self::CrashWithOldData
                | Self::DiskLosesWrite
        )
    }
}

impl Fault {
    /// The memory is lost, what is synced to the disk is not.
    pub(crate) const fn keeps_disk(self) -> bool {
        matches!(self, Self::CrashWithData | Self::CrashWithOldData)
    }

    pub(crate) const fn is_of_clocks(self) -> bool {
        matches!(
            self,
            Self::ClockOffset | Self::ClockHour | Self::ClockDrift | Self::ClockStepBack
        )
    }
}

/// What is to be undone, and when.
struct Cure {
    after_ms: u64,
    undo: Undo,
}

enum Undo {
    Link(usize, usize),
    Believe(usize, usize),
    Start(usize, Memory),
    Resume(usize),
    Clock(usize),
    Slow(usize),
    Weather,
    Disk(usize),
}

/// The faults of one run.
pub(crate) struct Faults {
    rng: SeededRng,
    cures: Vec<Cure>,
    next_ms: u64,
    now_ms: u64,
    pub(crate) counts: BTreeMap<Fault, u64>,
    pub(crate) log: Vec<(u64, String)>,
    /// What may happen. Memory is lost only when all others have theirs.
    kinds: Vec<Fault>,
    /// How often memory may be lost.
    pub(crate) losses_left: u64,
}

impl Faults {
    pub(crate) fn new(seed: u64, kinds: Vec<Fault>) -> Self {
        Self {
            rng: SeededRng::from_seed(seed ^ 0x0066_6175_6c74),
            cures: Vec::new(),
            next_ms: 1_000,
            now_ms: 0,
            counts: BTreeMap::new(),
            log: Vec::new(),
            kinds,
            losses_left: u64::MAX,
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn node(&self, cluster: &Cluster) -> usize {
        usize::try_from(self.below(cluster.nodes.len() as u64)).unwrap()
    }

    /// Moves on: undoes what is over, does what is due.
    pub(crate) fn advance(&mut self, by: Duration, cluster: &mut Cluster) {
        self.now_ms += u64::try_from(by.as_millis()).unwrap();
        let now = self.now_ms;
        let (due, cures) = std::mem::take(&mut self.cures)
            .into_iter()
            .partition(|cure| cure.after_ms <= now);
        self.cures = cures;
        let due: Vec<Cure> = due;
        for cure in due {
            Self::undo(cure.undo, cluster);
        }
        if self.next_ms <= now {
            self.next_ms = now + 500 + self.below(5_000);
            self.strike(cluster);
        }
        // Every now and then, what a restart with old data will find.
        if now.is_multiple_of(2_000) {
            let node = self.node(cluster);
            cluster.remember(node);
        }
    }

    /// Undoes everything.
    pub(crate) fn heal(&mut self, cluster: &mut Cluster) {
        for cure in std::mem::take(&mut self.cures) {
            Self::undo(cure.undo, cluster);
        }
        cluster.network.heal();
        for one in 0..cluster.nodes.len() {
            for other in 0..one {
                cluster.cut(one, other, false);
            }
        }
        for node in 0..cluster.nodes.len() {
            cluster.nodes[node].clock.set_offset(0);
        }
    }

    #[expect(clippy::too_many_lines, reason = "an arm a fault, each a few lines")]
    fn strike(&mut self, cluster: &mut Cluster) {
        let kind = self.below(self.kinds.len() as u64);
        let fault = self.kinds[usize::try_from(kind).unwrap()];
        let (mut one, other) = (self.node(cluster), self.node(cluster));
        if fault == Fault::ClockHour {
            // Always the same one: what it writes while its clock is an hour ahead counts for
            // nothing for an hour, and a quorum must be left.
            one = 0;
        }
        if fault.loses_memory() && !(cluster.is_sure() && cluster.is_up(one)) {
            return;
        }
        if fault.loses_memory() && fault != Fault::CrashWithData {
            if self.losses_left == 0 {
                return;
            }
            self.losses_left -= 1;
        }
        if one == other
            && matches!(
                fault,
                Fault::CutOneWay | Fault::CutBothWays | Fault::MembershipLies
            )
        {
            return;
        }
        *self.counts.entry(fault).or_default() += 1;
        let lasts = 300 + self.below(6_000);
        self.log.push((
            self.now_ms,
            format!("{fault:?} n{one} n{other} for {lasts} ms"),
        ));
        cluster
            .network
            .note((self.now_ms, format!("{fault:?}"), one, other, lasts));
        let after_ms = self.now_ms + lasts;
        let mut cure = |undo| self.cures.push(Cure { after_ms, undo });
        match fault {
            Fault::CutOneWay => {
                cluster.cut(one, other, true);
                cure(Undo::Link(one, other));
            }
            Fault::CutBothWays => {
                for (a, b) in [(one, other), (other, one)] {
                    cluster.cut(a, b, true);
                    cure(Undo::Link(a, b));
                }
            }
            Fault::Isolate | Fault::Split => {
                // A split leaves two nodes together on the one side.
                let side = |node: usize| node == one || (fault == Fault::Split && node == other);
                for a in 0..cluster.nodes.len() {
                    for b in 0..cluster.nodes.len() {
                        if side(a) != side(b) {
                            cluster.cut(a, b, true);
                            cure(Undo::Link(a, b));
                        }
                    }
                }
            }
            Fault::CrashWithData | Fault::CrashWithoutData | Fault::CrashWithOldData => {
                cluster.kill(one);
                cure(Undo::Start(
                    one,
                    match fault {
                        Fault::CrashWithData => Memory::Kept,
                        Fault::CrashWithoutData => Memory::Nothing,
                        _ => Memory::Earlier,
                    },
                ));
            }
            Fault::DiskError => {
                cluster.nodes[one].disk.set_failing(true);
                cure(Undo::Disk(one));
            }
            Fault::DiskLosesWrite => {
                cluster.kill(one);
                cluster.nodes[one].disk.lose_last_write();
                cure(Undo::Start(one, Memory::Kept));
            }
            Fault::Pause => {
                cluster.network.set_paused(cluster.tag(one), true);
                cure(Undo::Resume(one));
            }
            Fault::ClockOffset => {
                let offset = i64::try_from(self.rng.next_u64() % 10_000).unwrap() - 5_000;
                cluster.nodes[one].clock.set_offset(offset);
            }
            Fault::ClockHour => {
                let sign = if self.rng.next_u64().is_multiple_of(2) {
                    1
                } else {
                    -1
                };
                cluster.nodes[one].clock.set_offset(sign * 3_600_000);
                cure(Undo::Clock(one));
            }
            Fault::ClockDrift => {
                let ppm = i64::try_from(self.rng.next_u64() % 200_000).unwrap() - 100_000;
                cluster.nodes[one].clock.set_drift(ppm);
                cure(Undo::Clock(one));
            }
            Fault::ClockStepBack => cluster.nodes[one].clock.set_offset(-4_000),
            Fault::SlowNode => {
                let slow = Duration::from_millis(20 + self.rng.next_u64() % 100);
                cluster.network.set_slow(cluster.tag(one), slow);
                cure(Undo::Slow(one));
            }
            Fault::Loss | Fault::Duplication | Fault::Reordering => {
                let mut state = cluster.network.lock();
                let weather = &mut state.weather;
                match fault {
                    Fault::Loss => weather.loss = 0.15,
                    Fault::Duplication => weather.duplication = 0.3,
                    _ => weather.jitter_ms = 80,
                }
                drop(state);
                cure(Undo::Weather);
            }
            Fault::MembershipLies => {
                cluster
                    .network
                    .believe_away(cluster.tag(one), cluster.tag(other), true);
                cure(Undo::Believe(one, other));
            }
        }
    }

    fn undo(undo: Undo, cluster: &mut Cluster) {
        match undo {
            Undo::Link(a, b) => cluster.cut(a, b, false),
            Undo::Believe(a, b) => {
                cluster
                    .network
                    .believe_away(cluster.tag(a), cluster.tag(b), false);
            }
            Undo::Start(node, memory) => cluster.start_node(node, &memory),
            Undo::Resume(node) => cluster.network.set_paused(cluster.tag(node), false),
            Undo::Clock(node) => cluster.nodes[node].clock.set_offset(0),
            Undo::Slow(node) => cluster.network.set_slow(cluster.tag(node), Duration::ZERO),
            Undo::Disk(node) => cluster.nodes[node].disk.set_failing(false),
            Undo::Weather => cluster.network.lock().weather = Weather::default(),
        }
    }
}
