//! Each update is applied at most once, and exactly once when that was acknowledged: state machines and
//! stores alone, with messages that are lost, late and doubled, and plain repairs in between.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::homes::promise;
use crate::model::{
    Body, HashedKey, HlcTime, KeyHasher, Millis, NodeTag, PartitionId, RecordRef, Version,
};
use crate::protocol::{
    Promise, Proposed, Standing, UpdateAction, UpdateId, UpdateOp, UpdatePlan, Updated, Updates,
};
use crate::store::{Accepted, Limits, Promised, Proposal, Store};
use crate::update::{Change, Limit};

const HOMES: usize = 3;
const PLAN: UpdatePlan = UpdatePlan {
    homes: HOMES,
    need: 2,
    value_bytes_max: 100_000,
    ring: 1,
};

fn key() -> HashedKey<'static> {
    HashedKey {
        bytes: b"k",
        hash: KeyHasher::new("test").hash(b"k"),
        partition: PartitionId(0),
    }
}

#[derive(Debug, Clone)]
enum Message {
    Promise(Version),
    Accept(Proposed),
    Promised(Version, Promise),
    Accepted(Version, bool),
    Outbid(Version, Version),
}

#[derive(Default)]
struct Proposer {
    queue: VecDeque<Updates>,
    op: Option<UpdateOp>,
    standing: Option<Standing>,
}

struct Coordinator {
    updates: Updates,
    at: usize,
    is_renewed: bool,
}

struct World {
    rng: u64,
    clock: u64,
    stores: Vec<Store>,
    proposers: Vec<Proposer>,
    coordinators: Vec<Coordinator>,
    /// Of a proposer, to or from a home.
    messages: Vec<(usize, usize, Message)>,
    acknowledged: Vec<UpdateId>,
}

impl World {
    fn new(seed: u64) -> Self {
        let limits = Limits {
            partitions: 16,
            tombstone_age: Duration::from_secs(600),
        };
        let store = |_| Store::new(KeyHasher::new("test"), limits);
        let mut world = Self {
            rng: seed | 1,
            clock: HlcTime::from_millis(Millis(10_000)).0,
            stores: (0..HOMES).map(store).collect(),
            proposers: (0..HOMES).map(|_| Proposer::default()).collect(),
            coordinators: Vec::new(),
            messages: Vec::new(),
            acknowledged: Vec::new(),
        };
        for coordinator in 0..3 {
            let updates = world.updates(coordinator, 1);
            world.coordinators.push(Coordinator {
                updates,
                at: usize::try_from(coordinator).unwrap() % HOMES,
                is_renewed: false,
            });
            world.send(usize::try_from(coordinator).unwrap());
        }
        world
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 11) % sides
    }

    fn home(&mut self) -> usize {
        usize::try_from(self.dice(HOMES as u64)).unwrap()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn updates(&mut self, coordinator: u64, sequence: u64) -> Updates {
        let command = format!("APPEND k {coordinator}.{sequence};\r\n");
        Updates {
            id: UpdateId {
                coordinator: NodeTag(coordinator),
                sequence,
            },
            begun: HlcTime(self.tick()),
            is_open: false,
            changes: vec![Change::Command(Bytes::from(command))],
        }
    }

    fn send(&mut self, coordinator: usize) {
        let Coordinator { updates, at, .. } = &self.coordinators[coordinator];
        self.proposers[*at].queue.push_back(updates.clone());
    }

    /// The coordinator goes on to its next updates.
    fn go_on(&mut self, coordinator: usize) {
        let UpdateId {
            coordinator: tag,
            sequence,
        } = self.coordinators[coordinator].updates.id;
        let updates = self.updates(tag.0, sequence + 1);
        self.coordinators[coordinator].updates = updates;
        self.coordinators[coordinator].is_renewed = false;
        self.send(coordinator);
    }

    fn next_home(&mut self, coordinator: usize) {
        let at = self.home();
        self.coordinators[coordinator].at = at;
        self.send(coordinator);
    }

    fn on_updated(&mut self, proposer: usize, updates: &Updates, updated: &Updated) {
        let number = usize::try_from(updates.id.coordinator.0).unwrap();
        let Some(coordinator) = self.coordinators.get_mut(number) else {
            return;
        };
        if coordinator.updates.id != updates.id || coordinator.at != proposer {
            return;
        }
        match updated {
            Updated::Made(_) | Updated::Lost(_) => {
                self.acknowledged.push(updates.id);
                self.go_on(number);
            }
            Updated::TooOld if coordinator.updates.is_open => self.go_on(number),
            Updated::TooOld => {
                self.clock += 1;
                coordinator.updates.begun = HlcTime(self.clock);
                coordinator.is_renewed = true;
                self.send(number);
            }
            Updated::NotMade(_) => self.next_home(number),
            Updated::Unknown => {
                coordinator.updates.is_open = true;
                self.next_home(number);
            }
        }
    }

    fn ballot(&mut self, proposer: usize, past: Version) -> Version {
        self.clock = self.clock.max(past.hlc.0);
        Version {
            hlc: HlcTime(self.tick()),
            node: NodeTag(10 + proposer as u64),
        }
    }

    /// Carries out what a state machine wants.
    fn act(&mut self, proposer: usize, mut op: UpdateOp, action: Option<UpdateAction>) {
        let message = match action {
            // It is done where the action is made: see `evaluate`.
            None | Some(UpdateAction::Evaluate) => None,
            Some(UpdateAction::Promise) => Some(Message::Promise(op.ballot())),
            Some(UpdateAction::Accept) => op.proposal().cloned().map(Message::Accept),
            Some(UpdateAction::Again { past, .. }) => {
                let ballot = self.ballot(proposer, past);
                let action = op.begin(ballot, Millis(10_000));
                return self.act(proposer, op, Some(action));
            }
            Some(UpdateAction::Finished) => {
                if let Some(ballot) = op.unused() {
                    let home = self.home();
                    self.stores[home].release(key(), ballot);
                }
                let (outcomes, standing) = op.outcomes();
                self.proposers[proposer].standing = standing;
                for (updates, updated) in outcomes {
                    self.on_updated(proposer, &updates, &updated);
                }
                return;
            }
        };
        self.proposers[proposer].op = Some(op);
        if let Some(message) = message {
            for home in 0..HOMES {
                self.messages.push((proposer, home, message.clone()));
            }
        }
    }

    fn begin(&mut self, proposer: usize) {
        let this = &mut self.proposers[proposer];
        if this.op.is_some() || this.queue.is_empty() {
            return;
        }
        let mut op = UpdateOp::new(PLAN, this.queue.drain(..).collect());
        let next = self.next();
        let action = match self.proposers[proposer].standing.take() {
            Some(standing) => {
                let action = op.begin_standing(standing, Millis(10_000));
                evaluate(&mut op, Some(action), next).unwrap_or(action)
            }
            None => UpdateAction::Again {
                past: Version::default(),
                pause: Duration::ZERO,
            },
        };
        self.act(proposer, op, Some(action));
    }

    /// Sometimes far enough ahead to serve what comes next, sometimes not.
    fn next(&mut self) -> Option<Version> {
        let ahead = [0, 3, 10, 100][usize::try_from(self.dice(4)).unwrap()];
        self.clock += 1;
        Some(Version {
            hlc: HlcTime(self.clock + ahead),
            node: NodeTag(1_000 + self.clock),
        })
    }

    fn deliver(&mut self, (proposer, home, message): (usize, usize, Message)) {
        let now = HlcTime(self.clock);
        let store = &self.stores[home];
        let answer = match &message {
            Message::Promise(ballot) => {
                let floor = store.floor(key()).hlc;
                let promised = store.promise(key(), *ballot, now, |record, lineage| {
                    promise(record.map(|record| record.to_record()), lineage, floor)
                });
                Some(match promised {
                    Promised::Promised(promise) => Message::Promised(*ballot, promise),
                    Promised::Refused { by } => Message::Outbid(*ballot, by),
                    Promised::Full => return,
                })
            }
            Message::Accept(proposed) => {
                let ballot = proposed.record.version;
                let proposal = Proposal {
                    record: (&proposed.record).into(),
                    lineage: &proposed.lineage.encode(),
                    base: proposed.base,
                    next: proposed.next,
                };
                Some(match store.accept(key(), proposal, now) {
                    Accepted::Accepted { is_next_promised } => {
                        Message::Accepted(ballot, is_next_promised)
                    }
                    Accepted::Refused { by } => Message::Outbid(ballot, by),
                })
            }
            _ => None,
        };
        if let Some(answer) = answer {
            self.messages.push((proposer, home, answer));
            return;
        }
        let next = self.next();
        let Some(mut op) = self.proposers[proposer].op.take() else {
            return;
        };
        let action = match message {
            Message::Promised(ballot, promise) => {
                let action = op.on_promise(home, ballot, promise);
                evaluate(&mut op, action, next)
            }
            Message::Accepted(ballot, is_next_promised) => {
                op.on_accepted(home, ballot, is_next_promised)
            }
            Message::Outbid(ballot, by) => op.on_outbid(home, ballot, by),
            Message::Promise(_) | Message::Accept(_) => None,
        };
        self.act(proposer, op, action);
    }

    /// A plain read repairs one copy from another: it carries no lineage.
    fn repair(&mut self) {
        let (from, to) = (self.home(), self.home());
        let record =
            self.stores[from].read(key(), Millis(10_000), |held: Option<RecordRef<'_>>| {
                held.map(|held| held.to_record())
            });
        if let Some(record) = record {
            self.stores[to].apply(key(), (&record).into(), Millis(10_000));
        }
    }

    fn step(&mut self) {
        match self.dice(20) {
            0 => self.repair(),
            1 => {
                let coordinator = self.home();
                self.coordinators[coordinator].updates.is_open = true;
                self.next_home(coordinator);
            }
            2 => {
                let proposer = self.home();
                if let Some(mut op) = self.proposers[proposer].op.take() {
                    let action = match self.dice(6) {
                        0 => Some(op.on_deadline()),
                        _ => op.on_slow(),
                    };
                    self.act(proposer, op, action);
                }
            }
            3 => {
                let proposer = self.home();
                self.begin(proposer);
            }
            _ if self.messages.is_empty() => {
                let proposer = self.home();
                self.begin(proposer);
            }
            dice => {
                let last = self.messages.len() as u64;
                let place = usize::try_from(self.dice(last)).unwrap();
                let message = match dice {
                    4 => self.messages[place].clone(),
                    _ => self.messages.swap_remove(place),
                };
                if dice != 5 {
                    self.deliver(message);
                }
            }
        }
        self.messages.truncate(200);
    }

    /// What a majority holds in the end.
    fn value(&mut self) -> Bytes {
        self.messages.clear();
        self.coordinators.clear();
        let look = Updates {
            id: UpdateId {
                coordinator: NodeTag(99),
                sequence: 1,
            },
            begun: HlcTime(self.tick()),
            is_open: false,
            changes: vec![Change::Look],
        };
        for proposer in &mut self.proposers {
            *proposer = Proposer::default();
        }
        self.clock += 1_000;
        self.proposers[0].queue.push_back(look);
        self.begin(0);
        while let Some(message) = self.messages.pop() {
            self.deliver(message);
        }
        let newest = (0..HOMES).filter_map(|home| {
            self.stores[home].read(key(), Millis(10_000), |held: Option<RecordRef<'_>>| {
                held.map(|held| held.to_record())
            })
        });
        match newest
            .max_by_key(|record| record.stamp())
            .map(|record| record.body)
        {
            Some(Body::Value(value)) => value,
            Some(Body::Tombstone) | None => Bytes::new(),
        }
    }
}

/// Evaluates at once what is to be.
fn evaluate(
    op: &mut UpdateOp,
    action: Option<UpdateAction>,
    next: Option<Version>,
) -> Option<UpdateAction> {
    match op.evaluation(Millis(0)) {
        Some(evaluation) => op.on_evaluated(evaluation.run(&Limit::of_steps()), || next),
        None => action,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_update_is_applied_once(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        let acknowledged = std::mem::take(&mut world.acknowledged);
        let value = world.value();
        let mut applied = BTreeMap::<&[u8], u32>::new();
        for tag in value.split(|byte| *byte == b';').filter(|tag| !tag.is_empty()) {
            *applied.entry(tag).or_default() += 1;
        }
        for (tag, times) in &applied {
            prop_assert_eq!(*times, 1, "{}", String::from_utf8_lossy(tag));
        }
        for UpdateId { coordinator, sequence } in acknowledged {
            let tag = format!("{}.{sequence}", coordinator.0);
            prop_assert!(applied.contains_key(tag.as_bytes()), "{tag} is lost");
        }
    }
}
