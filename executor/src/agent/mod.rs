//! The Mesos v1 HTTP executor API, as an executor sees it: messages, their two encodings, framing, and the connections
//! to the agent.

pub mod client;
pub mod environment;
pub mod link;
pub mod messages;
pub mod recordio;

pub use environment::Environment;
