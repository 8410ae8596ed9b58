//! Resources and attributes.

use super::*;

messages! {
    /// An amount of something, with a role.
    message Resource {
        provider_id: Option<ResourceProviderId> = [message, optional, tag = "12"];
        name: String = [string, required, tag = "1"];
        r#type: i32 = [enumeration = "ValueType", required, tag = "2"] as ValueType;
        scalar: Option<Scalar> = [message, optional, tag = "3"];
        ranges: Option<Ranges> = [message, optional, tag = "4"];
        set: Option<Set> = [message, optional, tag = "5"];
        role: Option<String> = [string, optional, tag = "6", default = "*"];
        allocation_info: Option<AllocationInfo> = [message, optional, tag = "11"];
        reservation: Option<ReservationInfo> = [message, optional, tag = "8"];
        reservations: Vec<ReservationInfo> = [message, repeated, tag = "13"];
        disk: Option<DiskInfo> = [message, optional, tag = "7"];
        revocable: Option<RevocableInfo> = [message, optional, tag = "9"];
        shared: Option<SharedInfo> = [message, optional, tag = "10"];
    }

    /// A property of an agent.
    message Attribute {
        name: String = [string, required, tag = "1"];
        r#type: i32 = [enumeration = "ValueType", required, tag = "2"] as ValueType;
        scalar: Option<Scalar> = [message, optional, tag = "3"];
        ranges: Option<Ranges> = [message, optional, tag = "4"];
        set: Option<Set> = [message, optional, tag = "6"];
        text: Option<Text> = [message, optional, tag = "5"];
    }

    /// A number.
    message Scalar { value: f64 = [double, required, tag = "1"]; }

    /// Both ends belong to it.
    message Range {
        begin: u64 = [uint64, required, tag = "1"];
        end: u64 = [uint64, required, tag = "2"];
    }

    /// Several ranges.
    message Ranges { range: Vec<Range> = [message, repeated, tag = "1"]; }

    /// Several words.
    message Set { item: Vec<String> = [string, repeated, tag = "1"]; }

    /// A text.
    message Text { value: String = [string, required, tag = "1"]; }

    /// For whom it is allocated.
    message AllocationInfo { role: Option<String> = [string, optional, tag = "1"]; }

    /// For whom it is reserved.
    message ReservationInfo {
        r#type: Option<i32> = [enumeration = "ReservationType", optional, tag = "4"] as ReservationType;
        role: Option<String> = [string, optional, tag = "3"];
        principal: Option<String> = [string, optional, tag = "1"];
        labels: Option<Labels> = [message, optional, tag = "2"];
    }

    /// What kind of disk it is.
    message DiskInfo {
        persistence: Option<Persistence> = [message, optional, tag = "1"];
        volume: Option<Volume> = [message, optional, tag = "2"];
        source: Option<DiskSource> = [message, optional, tag = "3"];
    }

    /// A disk that outlives its task.
    message Persistence {
        id: String = [string, required, tag = "1"];
        principal: Option<String> = [string, optional, tag = "2"];
    }

    /// Where a disk comes from.
    message DiskSource {
        r#type: i32 = [enumeration = "DiskSourceType", required, tag = "1"] as DiskSourceType;
        path: Option<DiskRoot> = [message, optional, tag = "2"];
        mount: Option<DiskRoot> = [message, optional, tag = "3"];
        vendor: Option<String> = [string, optional, tag = "7"];
        id: Option<String> = [string, optional, tag = "4"];
        metadata: Option<Labels> = [message, optional, tag = "5"];
        profile: Option<String> = [string, optional, tag = "6"];
    }

    /// `Path` and `Mount` of the schema, which are alike.
    message DiskRoot { root: Option<String> = [string, optional, tag = "1"]; }

    /// Its presence says that the resource may be taken away.
    message RevocableInfo {}

    /// Its presence says that several tasks may use it.
    message SharedInfo {}
}

enums! {
    /// Kinds of values.
    enum ValueType "" {
        Scalar = 0,
        Ranges = 1,
        Set = 2,
        Text = 3,
    }

    /// Kinds of reservations.
    enum ReservationType "" {
        Unknown = 0,
        Static = 1,
        Dynamic = 2,
    }

    /// Kinds of disks.
    enum DiskSourceType "" {
        Unknown = 0,
        Path = 1,
        Mount = 2,
        Block = 3,
        Raw = 4,
    }
}

impl Resource {
    /// A number of something, e.g. 32 MB of `mem`.
    pub fn scalar(name: &str, value: f64) -> Self {
        Resource {
            name: name.to_owned(),
            r#type: ValueType::Scalar.into(),
            scalar: Some(Scalar { value }),
            ..Default::default()
        }
    }
}
