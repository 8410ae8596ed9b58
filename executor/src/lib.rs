//! tepui: a container executor for Apache Mesos agents.

pub mod settings;
