//! Who holds hints for whom, as gossip tells.

use std::collections::BTreeMap;

use crate::model::NodeTag;

/// The homes that have not yet been given what others hold for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owed(BTreeMap<NodeTag, Vec<NodeTag>>);

impl Owed {
    /// From pairs of who holds hints and for whom.
    #[must_use]
    pub fn new(held: impl IntoIterator<Item = (NodeTag, NodeTag)>) -> Self {
        let mut owed = BTreeMap::<_, Vec<_>>::new();
        for (holder, home) in held {
            owed.entry(home).or_default().push(holder);
        }
        Self(owed)
    }

    /// Whether nobody holds a hint for anybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who holds hints for a home.
    #[must_use]
    pub fn holders(&self, home: NodeTag) -> &[NodeTag] {
        self.0.get(&home).map_or(&[], Vec::as_slice)
    }
}
