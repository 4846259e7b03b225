//! The vocabulary of filters: fields, and the operators that each supports.

/// The fields of filters, besides `_tags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Field {
    FlowId,
    RunNumber,
    RunId,
    UserName,
    TsEpoch,
    LastHeartbeatTs,
    Tags,
    SystemTags,
    User,
    Status,
}

/// The type of a field's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Kind {
    Text,
    Integer,
    Json,
    Status,
}

impl Field {
    pub(in crate::api) const ALL: [Self; 10] = [
        Self::FlowId,
        Self::RunNumber,
        Self::RunId,
        Self::UserName,
        Self::TsEpoch,
        Self::LastHeartbeatTs,
        Self::Tags,
        Self::SystemTags,
        Self::User,
        Self::Status,
    ];

    pub(in crate::api) fn name(self) -> &'static str {
        match self {
            Self::FlowId => "flow_id",
            Self::RunNumber => "run_number",
            Self::RunId => "run_id",
            Self::UserName => "user_name",
            Self::TsEpoch => "ts_epoch",
            Self::LastHeartbeatTs => "last_heartbeat_ts",
            Self::Tags => "tags",
            Self::SystemTags => "system_tags",
            Self::User => "user",
            Self::Status => "status",
        }
    }

    pub(in crate::api) fn kind(self) -> Kind {
        match self {
            Self::FlowId | Self::RunId | Self::UserName | Self::User => Kind::Text,
            Self::RunNumber | Self::TsEpoch | Self::LastHeartbeatTs => Kind::Integer,
            Self::Tags | Self::SystemTags => Kind::Json,
            Self::Status => Kind::Status,
        }
    }

    pub(in crate::api) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// The comparison of a field with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Contains,
    StartsWith,
    EndsWith,
    Like,
    Is,
}

impl Operator {
    pub(in crate::api) const ALL: [Self; 11] = [
        Self::Eq,
        Self::Ne,
        Self::Lt,
        Self::Le,
        Self::Gt,
        Self::Ge,
        Self::Contains,
        Self::StartsWith,
        Self::EndsWith,
        Self::Like,
        Self::Is,
    ];

    pub(in crate::api) fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Lt => "lt",
            Self::Le => "le",
            Self::Gt => "gt",
            Self::Ge => "ge",
            Self::Contains => "co",
            Self::StartsWith => "sw",
            Self::EndsWith => "ew",
            Self::Like => "li",
            Self::Is => "is",
        }
    }

    /// Whether the operator compares with an ILIKE pattern.
    pub(in crate::api) fn is_pattern(self) -> bool {
        matches!(
            self,
            Self::Contains | Self::StartsWith | Self::EndsWith | Self::Like
        )
    }

    /// Whether fields of a kind support the operator.
    pub(in crate::api) fn fits(self, kind: Kind) -> bool {
        match kind {
            Kind::Text => true,
            Kind::Integer | Kind::Json => !self.is_pattern(),
            Kind::Status => self.is_pattern() || matches!(self, Self::Eq | Self::Ne | Self::Is),
        }
    }

    pub(in crate::api) fn find(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operator| operator.name() == name)
    }
}
