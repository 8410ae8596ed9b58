//! The JSON form of Mesos' messages, which is not that of proto3: names as in the schema, numbers as numbers (or in
//! strings, on input), bytes in base64, enums by name, `null` the same as absent.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

/// What is wrong with a message in JSON, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// No JSON at all.
    #[error("not valid JSON")]
    Syntax(#[from] serde_json::Error),
    /// A field that the schema requires is absent.
    #[error("{path} is missing")]
    Missing {
        /// The field, from the outermost message.
        path: String,
    },
    /// A value of the wrong kind or out of range.
    #[error("{path} is {value}, but {expected} is expected")]
    Unexpected {
        /// The field, from the outermost message.
        path: String,
        /// The beginning of what is there.
        value: String,
        /// What may be there.
        expected: &'static str,
    },
}

/// Where in a message the reader is, and which fields it did not know.
#[derive(Debug, Default)]
pub struct Reader {
    path: Vec<String>,
    unknown: Vec<String>,
}

impl Reader {
    /// Reads something that is part of what is being read.
    pub fn inside<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(name.to_owned());
        let result = read(self);
        self.path.pop();
        result
    }

    /// The object of a message; notes the names in it that are not in `names`.
    pub(super) fn object<'v>(
        &mut self,
        value: Option<&'v Value>,
        names: &[&str],
    ) -> Result<&'v Map<String, Value>, JsonError> {
        let value = self.present(value)?;
        let object = value
            .as_object()
            .ok_or_else(|| self.unexpected(value, "an object"))?;
        for name in object.keys().filter(|name| !names.contains(&name.as_str())) {
            let path = self.inside(name, |reader| reader.path.join("."));
            self.unknown.push(path);
        }
        Ok(object)
    }

    fn present<'v>(&self, value: Option<&'v Value>) -> Result<&'v Value, JsonError> {
        value
            .filter(|value| !value.is_null())
            .ok_or_else(|| JsonError::Missing { path: self.path() })
    }

    fn unexpected(&self, value: &Value, expected: &'static str) -> JsonError {
        let value = value.to_string().chars().take(80).collect();
        JsonError::Unexpected {
            path: self.path(),
            value,
            expected,
        }
    }

    fn path(&self) -> String {
        if self.path.is_empty() {
            "the message".to_owned()
        } else {
            self.path.join(".")
        }
    }
}

/// Reads a message; also returns the paths of the fields that are not in the schema, which are otherwise ignored.
///
/// # Errors
/// When it is no JSON, a required field is missing, or a value is of the wrong kind.
pub fn read_json<T: Json>(bytes: &[u8]) -> Result<(T, Vec<String>), JsonError> {
    read_value(&parse(bytes)?)
}

/// The second half of `read_json`.
///
/// # Errors
/// When a required field is missing, or a value is of the wrong kind.
pub fn read_value<T: Json>(value: &Value) -> Result<(T, Vec<String>), JsonError> {
    let mut reader = Reader::default();
    Ok((T::read(Some(value), &mut reader)?, reader.unknown))
}

/// The first half of `read_json`. The agent writes infinite numbers as bare words, which JSON does not have: they
/// become strings.
///
/// # Errors
/// When it is no JSON.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    serde_json::from_slice(bytes).or_else(|error| match quote_infinities(bytes) {
        Some(quoted) => Ok(serde_json::from_slice(&quoted)?),
        None => Err(error.into()),
    })
}

/// Puts the words `Infinity` and `NaN` outside of strings into quotes; `None` when there are none.
fn quote_infinities(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut quoted = Vec::with_capacity(bytes.len() + 16);
    let (mut in_string, mut found, mut at) = (false, false, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word = [&b"-Infinity"[..], b"Infinity", b"NaN"]
            .into_iter()
            .find(|w| rest.starts_with(w));
        match (word, rest[0]) {
            (Some(word), _) if !in_string => {
                quoted.push(b'"');
                quoted.extend_from_slice(word);
                quoted.push(b'"');
                found = true;
                at += word.len();
                continue;
            }
            (_, b'\\') if in_string && rest.len() > 1 => {
                quoted.extend_from_slice(&rest[..2]);
                at += 2;
                continue;
            }
            (_, b'"') => in_string = !in_string,
            _ => (),
        }
        quoted.push(rest[0]);
        at += 1;
    }
    found.then_some(quoted)
}

/// A field, or anything that can be one.
pub trait Json: Sized {
    /// `None` when it is to be left out.
    fn write(&self) -> Option<Value>;

    /// `None` and null are the absent field.
    ///
    /// # Errors
    /// When it is required and absent, or of the wrong kind.
    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError>;
}

impl<T: Json> Json for Option<T> {
    fn write(&self) -> Option<Value> {
        self.as_ref().and_then(T::write)
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        match value {
            None | Some(Value::Null) => Ok(None),
            some => T::read(some, reader).map(Some),
        }
    }
}

impl<T: Json> Json for Box<T> {
    fn write(&self) -> Option<Value> {
        T::write(self)
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        T::read(value, reader).map(Box::new)
    }
}

impl<T: Json> Json for Vec<T> {
    fn write(&self) -> Option<Value> {
        (!self.is_empty()).then(|| Value::Array(self.iter().filter_map(T::write).collect()))
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        elements(value, reader, |item, reader| {
            T::read(Some(item), reader).map(Some)
        })
    }
}

/// The elements of an array; those for which `read` has nothing are left out.
fn elements<T>(
    value: Option<&Value>,
    reader: &mut Reader,
    read: impl Fn(&Value, &mut Reader) -> Result<Option<T>, JsonError>,
) -> Result<Vec<T>, JsonError> {
    let items = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(reader.unexpected(other, "an array")),
    };
    let one = |(index, item): (usize, &Value)| {
        reader
            .inside(&index.to_string(), |reader| read(item, reader))
            .transpose()
    };
    items.iter().enumerate().filter_map(one).collect()
}

impl<T: Json> Json for BTreeMap<String, T> {
    fn write(&self) -> Option<Value> {
        let member = |(key, value): (&String, &T)| Some((key.clone(), value.write()?));
        (!self.is_empty()).then(|| Value::Object(self.iter().filter_map(member).collect()))
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        let object = match value {
            None | Some(Value::Null) => return Ok(Self::new()),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(reader.unexpected(other, "an object")),
        };
        let member = |(key, value): (&String, &Value)| {
            let value = reader.inside(key, |reader| T::read(Some(value), reader))?;
            Ok((key.clone(), value))
        };
        object.iter().map(member).collect()
    }
}

impl Json for String {
    fn write(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        let value = reader.present(value)?;
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| reader.unexpected(value, "a string"))
    }
}

impl Json for bool {
    fn write(&self) -> Option<Value> {
        Some(Value::Bool(*self))
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        let value = reader.present(value)?;
        value
            .as_bool()
            .ok_or_else(|| reader.unexpected(value, "true or false"))
    }
}

impl Json for Bytes {
    fn write(&self) -> Option<Value> {
        Some(Value::String(STANDARD.encode(self)))
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        let value = reader.present(value)?;
        let bytes = value.as_str().and_then(|text| STANDARD.decode(text).ok());
        bytes
            .map(Bytes::from)
            .ok_or_else(|| reader.unexpected(value, "base64"))
    }
}

impl Json for f64 {
    fn write(&self) -> Option<Value> {
        let word = || match self.is_nan() {
            true => "NaN".to_owned(),
            false if *self > 0.0 => "Infinity".to_owned(),
            false => "-Infinity".to_owned(),
        };
        let number = serde_json::Number::from_f64(*self);
        Some(number.map_or_else(|| Value::String(word()), Value::Number))
    }

    fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        let value = reader.present(value)?;
        // Rust's f64 knows the words for infinity too.
        let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
        number.ok_or_else(|| reader.unexpected(value, "a number"))
    }
}

macro_rules! integers {
    ($($type:ident)*) => {$(
        impl Json for $type {
            fn write(&self) -> Option<Value> {
                Some(Value::from(*self))
            }

            fn read(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
                let value = reader.present(value)?;
                let number = match value {
                    // By their digits: a double has too few for nanoseconds.
                    Value::Number(number) => number.to_string().parse().ok(),
                    Value::String(text) => text.parse().ok(),
                    _ => None,
                };
                number.ok_or_else(|| reader.unexpected(value, "a whole number in range"))
            }
        }
    )*};
}
integers! { i32 i64 u32 u64 }

/// An enum of the schema.
pub trait Named: Copy + Into<i32> + TryFrom<i32> + 'static {
    /// All its values.
    const ALL: &'static [Self];

    /// The name that the schema gives this value.
    fn name(self) -> String;

    /// The value of that name.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.name() == name)
    }
}

/// The fields that hold enums, as numbers: written by name. Unknown ones are left out, unless they are required.
pub(super) trait EnumJson: Sized {
    fn write_enum<E: Named>(&self) -> Option<Value>;
    fn read_enum<E: Named>(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError>;
}

impl EnumJson for i32 {
    fn write_enum<E: Named>(&self) -> Option<Value> {
        E::try_from(*self)
            .ok()
            .map(|value| Value::String(value.name()))
    }

    fn read_enum<E: Named>(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        let value = reader.present(value)?;
        let known = value.as_str().and_then(E::from_name);
        known
            .map(E::into)
            .ok_or_else(|| reader.unexpected(value, "a name of the schema"))
    }
}

impl EnumJson for Option<i32> {
    fn write_enum<E: Named>(&self) -> Option<Value> {
        self.and_then(|number| number.write_enum::<E>())
    }

    fn read_enum<E: Named>(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) => Ok(E::from_name(name).map(E::into)),
            Some(other) => Err(reader.unexpected(other, "a name of the schema")),
        }
    }
}

impl EnumJson for Vec<i32> {
    fn write_enum<E: Named>(&self) -> Option<Value> {
        let names = self.iter().filter_map(|number| number.write_enum::<E>());
        (!self.is_empty()).then(|| Value::Array(names.collect()))
    }

    fn read_enum<E: Named>(value: Option<&Value>, reader: &mut Reader) -> Result<Self, JsonError> {
        elements(value, reader, |item, reader| {
            Option::<i32>::read_enum::<E>(Some(item), reader)
        })
    }
}

/// The name of a field without the mark of a raw identifier.
pub(super) const fn field_name(identifier: &'static str) -> &'static str {
    match identifier.as_bytes() {
        [b'r', b'#', ..] => identifier.split_at(2).1,
        _ => identifier,
    }
}

/// `CommandExecutor` as `PREFIX_COMMAND_EXECUTOR`.
pub(super) fn screaming(prefix: &str, variant: &str) -> String {
    let mut name = prefix.to_owned();
    for (index, letter) in variant.char_indices() {
        if index > 0 && letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
