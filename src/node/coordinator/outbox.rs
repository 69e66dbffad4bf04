//! What a batch has to say to its peers, one frame each.

use bytes::Bytes;

use crate::model::{NodeTag, Version};
use crate::net::{LARGE_BYTES, Lane, Operations};
use crate::wire::{Operation, RESPONSE_VALUES_BYTES_MAX};

/// What the answer to one operation is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// Which item of the batch.
    pub(super) item: usize,
    /// Which replica of that item.
    pub(super) replica: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// The state of a read.
    Held,
    /// A read's repair.
    Repaired,
    /// A write of this version.
    Written(Version),
    /// A change of expiry of this version.
    Expiry(Version),
}

/// Operations for one peer, and what their answers are for.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) to: NodeTag,
    pub(super) urgent: bool,
    /// It holds hints, and nothing else: their answers wait for a disk, others must not.
    pub(super) has_hints: bool,
    /// It holds one operation, with a large value or whose answer may have one.
    is_large: bool,
    pub(super) operations: Operations,
    pub(super) expected: Vec<Expected>,
}

impl Parcel {
    pub(super) fn lane(&self) -> Lane {
        match self.operations.bytes() {
            _ if !self.urgent => Lane::Bulk,
            _ if self.is_large => Lane::Large,
            LARGE_BYTES.. => Lane::Large,
            _ => Lane::Foreground,
        }
    }
}

/// Parcels being packed.
#[derive(Debug, Default)]
pub(super) struct Outbox(Vec<Parcel>);

impl Outbox {
    /// Adds an operation to the peer's parcel. `urgent`: a client waits for it.
    pub(super) fn push(
        &mut self,
        to: NodeTag,
        urgent: bool,
        operation: &Operation<'_>,
        expected: Expected,
    ) {
        self.push_sharing((to, urgent), operation, expected, &Bytes::new());
    }

    /// The same of an operation that holds `value`. A large one travels alone, and is not copied.
    pub(super) fn push_sharing(
        &mut self,
        (to, urgent): (NodeTag, bool),
        operation: &Operation<'_>,
        expected: Expected,
        value: &Bytes,
    ) {
        let has_hints = matches!(operation, Operation::Hint(..) | Operation::HintExpiry(..));
        let is_large = value.len() >= LARGE_BYTES;
        let fits = |parcel: &&mut Parcel| {
            parcel.to == to
                && parcel.urgent == urgent
                && parcel.has_hints == has_hints
                && !is_large
                && !parcel.is_large
                // Below the size of a frame even with one more value of the longest kind.
                && parcel.operations.bytes() < RESPONSE_VALUES_BYTES_MAX
        };
        let parcel = match self.0.iter_mut().find(fits) {
            Some(parcel) => parcel,
            None => self.0.push_mut(Parcel {
                to,
                urgent,
                has_hints,
                is_large,
                operations: Operations::default(),
                expected: Vec::new(),
            }),
        };
        parcel.operations.push_sharing(operation, value);
        parcel.expected.push(expected);
    }

    /// Adds an operation whose answer may hold a large value: it travels alone.
    pub(super) fn push_alone(
        &mut self,
        to: NodeTag,
        operation: &Operation<'_>,
        expected: Expected,
    ) {
        let mut operations = Operations::default();
        operations.push(operation);
        self.0.push(Parcel {
            to,
            urgent: true,
            has_hints: false,
            is_large: true,
            operations,
            expected: vec![expected],
        });
    }

    /// Takes all parcels out.
    pub(super) fn take(&mut self) -> Vec<Parcel> {
        std::mem::take(&mut self.0)
    }
}
