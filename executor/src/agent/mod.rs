//! The Mesos v1 HTTP executor API, as an executor sees it: messages, their two encodings, framing, and the connections
//! to the agent.

pub mod environment;
pub mod messages;
pub mod recordio;
pub use environment::Environment;
