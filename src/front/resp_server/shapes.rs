//! What a command reads, writes and replies with, as far as a plan asks.

use crate::resp::{CommandKind, DataCommand};

/// Whether a command changes nothing: several of those may be under way at once without anybody
/// seeing an order.
pub(super) const fn is_read(command: &DataCommand<'_>) -> bool {
    use DataCommand as D;
    match command {
        D::Get { .. } | D::MGet { .. } | D::Exists { .. } | D::Ttl { .. } | D::Type { .. } => true,
        D::StrLen { .. } | D::Part { .. } | D::Hash { .. } | D::Usage { .. } => true,
        D::Script(script) | D::NamedScript(script) => script.is_read_only,
        D::Set { .. } | D::MSet { .. } | D::Del { .. } | D::Expire { .. } => false,
        D::Persist { .. } | D::Update { .. } => false,
    }
}

/// Whether the reply to an update may hold a value.
pub(super) const fn tells_value(kind: CommandKind) -> bool {
    use CommandKind as K;
    matches!(
        kind,
        K::Set | K::GetSet | K::GetDel | K::GetEx | K::Eval | K::EvalRo | K::EvalSha | K::EvalShaRo
    )
}
