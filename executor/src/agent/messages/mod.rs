//! The messages of `mesos/v1/mesos.proto` and `mesos/v1/executor/executor.proto` that an executor meets.
//!
//! Each message is one table of fields: the macro below makes of it a struct, its protobuf encoding (by prost's derive)
//! and its JSON encoding. Field names and numbers are Mesos' own, so nothing is said about them here that mesos.proto
//! does not say. Required fields are plain, optional ones `Option`, whose accessor of the same name returns the default
//! of the schema. Enums travel as numbers, so that a value of a later Mesos is no error.
//!
//! All fields of Mesos 1.11 are there, so a `TaskInfo` can be sent back to the agent as it came.

mod check;
mod command;
mod container;
mod executor;
mod json;
mod resource;
mod status;
mod task;
mod volume;

use bytes::Bytes;
use serde_json::Value as JsonValue;

use crate::settings::ContentType;

pub use check::*;
pub use command::*;
pub use container::*;
pub use executor::*;
pub use json::{Json, JsonError, parse, read_json, read_value};
pub use resource::*;
pub use status::*;
pub use task::*;
pub use volume::*;

/// Messages as tables: `field: Type = [prost's attributes] as Enum;`, the last part for enum fields only.
macro_rules! messages {
    ($($(#[$doc:meta])* message $name:ident {
        $($field:ident : $type:ty = [$($prost:tt)*] $(as $enum:ident)?;)*
    })*) => {$(
        $(#[$doc])*
        #[allow(missing_docs)] // mesos.proto has them
        #[derive(Clone, PartialEq, ::prost::Message)]
        pub struct $name {
            $(#[prost($($prost)*)] pub $field: $type,)*
        }

        impl $crate::agent::messages::json::Json for $name {
            fn write(&self) -> Option<::serde_json::Value> {
                #[allow(unused_mut)] // for messages without fields
                let mut object = ::serde_json::Map::new();
                $(
                    let value = messages!(@write self.$field $(, $enum)?);
                    if let Some(value) = value {
                        let name = $crate::agent::messages::json::field_name(stringify!($field));
                        object.insert(name.to_owned(), value);
                    }
                )*
                Some(::serde_json::Value::Object(object))
            }

            fn read(
                value: Option<&::serde_json::Value>,
                reader: &mut $crate::agent::messages::json::Reader,
            ) -> Result<Self, $crate::agent::messages::json::JsonError> {
                const NAMES: &[&str] =
                    &[$($crate::agent::messages::json::field_name(stringify!($field))),*];
                #[allow(unused_variables)] // for messages without fields
                let object = reader.object(value, NAMES)?;
                Ok(Self {
                    $($field: {
                        const NAME: &str = $crate::agent::messages::json::field_name(stringify!($field));
                        reader.inside(NAME, |reader| {
                            messages!(@read object.get(NAME), reader $(, $enum)?)
                        })?
                    },)*
                })
            }
        }
    )*};
    (@write $value:expr) => { $crate::agent::messages::json::Json::write(&$value) };
    (@write $value:expr, $enum:ident) => {
        $crate::agent::messages::json::EnumJson::write_enum::<$enum>(&$value)
    };
    (@read $value:expr, $reader:ident) => { $crate::agent::messages::json::Json::read($value, $reader) };
    (@read $value:expr, $reader:ident, $enum:ident) => {
        $crate::agent::messages::json::EnumJson::read_enum::<$enum>($value, $reader)
    };
}

/// Enums: `PREFIX_` of the names in the schema, then the values. The names follow from the variants: `CommandExecutor`
/// is `COMMAND_EXECUTOR`; where that does not hold the name is given.
macro_rules! enums {
    ($($(#[$doc:meta])* enum $name:ident $prefix:literal {
        $($variant:ident = $number:literal $(as $spelled:literal)?,)*
    })*) => {$(
        $(#[$doc])*
        #[allow(missing_docs)] // mesos.proto has them
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum $name { $($variant = $number,)* }

        impl $crate::agent::messages::json::Named for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn name(self) -> String {
                match self {
                    $(Self::$variant => enums!(@name $prefix $variant $($spelled)?),)*
                }
            }
        }
    )*};
    (@name $prefix:literal $variant:ident) => {
        $crate::agent::messages::json::screaming($prefix, stringify!($variant))
    };
    (@name $prefix:literal $variant:ident $spelled:literal) => { $spelled.to_owned() };
}
use {enums, messages};

pub use json::Named;

messages! {
    /// Name of a framework, given by the master.
    message FrameworkId { value: String = [string, required, tag = "1"]; }

    /// Name of an agent, given by the master.
    message AgentId { value: String = [string, required, tag = "1"]; }

    /// Name of a task, given by the framework.
    message TaskId { value: String = [string, required, tag = "1"]; }

    /// Name of an executor, given by the framework.
    message ExecutorId { value: String = [string, required, tag = "1"]; }

    /// Name of a container, given by the agent.
    message ContainerId {
        value: String = [string, required, tag = "1"];
        parent: Option<Box<ContainerId>> = [message, optional, boxed, tag = "2"];
    }

    /// Name of a resource provider.
    message ResourceProviderId { value: String = [string, required, tag = "1"]; }

    /// A point in time, since the epoch.
    message TimeInfo { nanoseconds: i64 = [int64, required, tag = "1"]; }

    /// A length of time.
    message DurationInfo { nanoseconds: i64 = [int64, required, tag = "1"]; }

    /// Free-form names and values.
    message Labels { labels: Vec<Label> = [message, repeated, tag = "1"]; }

    /// One of them.
    message Label {
        key: String = [string, required, tag = "1"];
        value: Option<String> = [string, optional, tag = "2"];
    }
}

impl DurationInfo {
    /// As a duration; Mesos refuses negative ones, here they count as zero.
    pub fn to_duration(&self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.nanoseconds.max(0).unsigned_abs())
    }
}

/// Why a message could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not this message in protobuf.
    #[error("could not decode a protobuf message")]
    Protobuf(#[from] prost::DecodeError),
    /// Not this message in JSON.
    #[error("could not decode a JSON message")]
    Json(#[from] JsonError),
}

impl ContentType {
    /// What HTTP calls it; the agent compares the exact string.
    pub fn mime(self) -> &'static str {
        match self {
            ContentType::Protobuf => "application/x-protobuf",
            ContentType::Json => "application/json",
        }
    }

    /// A message as bytes.
    pub fn encode<M: prost::Message + Json>(self, message: &M) -> Bytes {
        match self {
            ContentType::Protobuf => message.encode_to_vec().into(),
            ContentType::Json => {
                let value = message.write().unwrap_or(JsonValue::Null);
                value.to_string().into_bytes().into()
            }
        }
    }

    /// A message from bytes. Unknown fields are skipped, as are unknown values of enums that are not required.
    ///
    /// # Errors
    /// When they are malformed or lack a required field.
    pub fn decode<M: prost::Message + Json + Default>(
        self,
        bytes: Bytes,
    ) -> Result<M, DecodeError> {
        Ok(match self {
            ContentType::Protobuf => M::decode(bytes)?,
            ContentType::Json => read_json(&bytes)?.0,
        })
    }
}

#[cfg(test)]
mod tests;
