//! What a person writes to have a task run: a TaskInfo in Mesos' JSON form, with little in it, or several as a group.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::AGENT;
use crate::agent::messages::{
    Event, EventType, Json as _, JsonError, Launch, LaunchGroup, TaskGroupInfo, TaskId, TaskInfo,
    parse, read_value,
};

/// Prefixes of image references that a path follows.
const LOCAL_IMAGES: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

/// Why a file does not describe tasks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskFileError {
    /// It cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TaskInfo.
    #[error("{} is neither a TaskInfo nor {{\"tasks\": [...]}} in Mesos' JSON form", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: JsonError,
    },
    /// It is well-formed, but cannot be meant.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Tasks, ready to be launched.
#[derive(Debug)]
pub struct TaskFile {
    tasks: Vec<TaskInfo>,
    is_group: bool,
    unknown: Vec<String>,
}

impl TaskFile {
    /// Reads a file. What Mesos would require, and a person need not say, is filled in: ids, name, resources. Relative
    /// paths of images are relative to the file.
    ///
    /// # Errors
    /// When there is no such file, or it does not describe tasks.
    pub fn read(path: &Path) -> Result<Self, TaskFileError> {
        let read = |source| TaskFileError::Read {
            path: path.to_owned(),
            source,
        };
        let form = |source| TaskFileError::Form {
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::read(path).map_err(read)?;
        let directory = std::path::absolute(path).map_err(read)?;
        let directory = directory.parent().unwrap_or(Path::new("/"));
        let stem = path
            .file_stem()
            .map_or("task".into(), |stem| stem.to_string_lossy());

        let mut value = parse(&bytes).map_err(form)?;
        let (mut values, is_group) = match value.get_mut("tasks").map(Value::take) {
            Some(Value::Array(tasks)) => (tasks, true),
            _ => (vec![value], false),
        };
        let mut unknown = Vec::new();
        let mut tasks: Vec<TaskInfo> = Vec::new();
        for (index, value) in values.iter_mut().enumerate() {
            let default = if is_group {
                format!("{stem}.{index}")
            } else {
                stem.to_string()
            };
            if let Some(object) = value.as_object_mut() {
                fill_in(object, &default);
            }
            let (task, more) = read_value::<TaskInfo>(value).map_err(form)?;
            unknown.extend(more);
            tasks.push(task);
        }
        let content = |problem| TaskFileError::Content {
            path: path.to_owned(),
            problem,
        };
        if tasks.is_empty() {
            return Err(content("there is no task in \"tasks\"".to_owned()));
        }
        for index in 0..tasks.len() {
            let (earlier, rest) = tasks.split_at_mut(index);
            let task = &mut rest[0];
            if earlier.iter().any(|other| other.task_id == task.task_id) {
                return Err(content(format!(
                    "two tasks have the id {}",
                    task.task_id.value
                )));
            }
            make_images_absolute(task, directory);
            if !is_group {
                move_command(task).map_err(content)?;
            }
        }
        Ok(TaskFile {
            tasks,
            is_group,
            unknown,
        })
    }

    /// Paths of fields that Mesos does not know.
    pub fn unknown_fields(&self) -> &[String] {
        &self.unknown
    }

    /// The tasks' ids.
    pub fn ids(&self) -> Vec<TaskId> {
        self.tasks.iter().map(|task| task.task_id.clone()).collect()
    }

    /// The event that launches them.
    pub fn launch(mut self) -> Event {
        if self.is_group {
            let task_group = TaskGroupInfo { tasks: self.tasks };
            return Event {
                launch_group: Some(LaunchGroup { task_group }),
                ..Event::of(EventType::LaunchGroup)
            };
        }
        Event {
            launch: self.tasks.pop().map(|task| Launch { task }),
            ..Event::of(EventType::Launch)
        }
    }
}

fn fill_in(task: &mut Map<String, Value>, default: &str) {
    let name = task.get("name").cloned().unwrap_or_else(|| json!(default));
    let id = task
        .entry("task_id")
        .or_insert_with(|| json!({ "value": name }));
    let id = id.get("value").cloned().unwrap_or(name);
    task.entry("name").or_insert(id);
    task.entry("agent_id")
        .or_insert_with(|| json!({ "value": AGENT }));
    let scalar = |name: &str, value: f64| json!({"name": name, "type": "SCALAR", "scalar": {"value": value}, "allocation_info": {"role": "*"}});
    task.entry("resources")
        .or_insert_with(|| json!([scalar("cpus", 1.0), scalar("mem", 256.0)]));
}

fn make_images_absolute(task: &mut TaskInfo, directory: &Path) {
    let Some(container) = &mut task.container else {
        return;
    };
    let mesos = container
        .mesos
        .iter_mut()
        .filter_map(|mesos| mesos.image.as_mut()?.docker.as_mut());
    let docker = container.docker.iter_mut().map(|docker| &mut docker.image);
    for name in mesos.map(|docker| &mut docker.name).chain(docker) {
        let path = LOCAL_IMAGES
            .iter()
            .find_map(|prefix| Some((*prefix, name.strip_prefix(prefix)?)));
        if let Some((prefix, path)) = path.filter(|(_, path)| !path.starts_with('/')) {
            *name = format!("{prefix}{}/{path}", directory.display());
        }
    }
}

/// A LAUNCH never carries a command to an executor like ours, so it goes where ours looks for it.
fn move_command(task: &mut TaskInfo) -> Result<(), String> {
    let Some(command) = task.command.take() else {
        return Ok(());
    };
    if task.data.is_some() {
        return Err(
            "\"command\" and \"data\" exclude each other: the command travels in the data"
                .to_owned(),
        );
    }
    task.data = Some(
        json!({ "command": command.write() })
            .to_string()
            .into_bytes()
            .into(),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<TaskFile, TaskFileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.json");
        std::fs::write(&path, text).unwrap();
        TaskFile::read(&path)
    }

    #[test]
    fn little_is_enough() {
        let file = read(r#"{"command": {"value": "true"}, "levitate": 1}"#).unwrap();
        assert_eq!(file.unknown_fields(), ["levitate"]);
        let task = file.launch().launch.unwrap().task;
        assert_eq!(
            (task.name.as_str(), task.task_id.value.as_str()),
            ("web", "web")
        );
        assert_eq!(task.agent_id.value, AGENT);
        assert_eq!(task.resources.len(), 2);
        assert_eq!(task.command, None);
        assert_eq!(task.data.unwrap(), r#"{"command":{"value":"true"}}"#);
    }

    #[test]
    fn what_is_said_is_left_as_it_is() {
        let file = read(r#"{"task_id": {"value": "t"}, "resources": [], "data": "AAEC"}"#).unwrap();
        let task = file.launch().launch.unwrap().task;
        assert_eq!(
            (task.name.as_str(), task.task_id.value.as_str()),
            ("t", "t")
        );
        assert!(task.resources.is_empty());
        assert_eq!(task.data.unwrap(), [0, 1, 2][..]);
    }

    #[test]
    fn members_of_a_group_keep_their_commands() {
        let file = read(r#"{"tasks": [{"command": {"value": "a"}}, {"name": "b"}]}"#).unwrap();
        let tasks = file.launch().launch_group.unwrap().task_group.tasks;
        assert_eq!(tasks[0].task_id.value, "web.0");
        assert_eq!(tasks[0].command.as_ref().unwrap().value(), "a");
        assert_eq!(tasks[1].task_id.value, "b");
    }

    #[test]
    fn images_are_relative_to_the_file() {
        let image = |name: &str| {
            let mut task = TaskInfo::default();
            let docker = crate::agent::messages::DockerInfo {
                image: name.to_owned(),
                ..Default::default()
            };
            task.container.get_or_insert_default().docker = Some(docker);
            make_images_absolute(&mut task, Path::new("/tasks"));
            task.container.unwrap().docker.unwrap().image
        };
        assert_eq!(image("oci:../busybox:1"), "oci:/tasks/../busybox:1");
        assert_eq!(image("docker-archive:b.tar"), "docker-archive:/tasks/b.tar");
        assert_eq!(image("oci:/abs"), "oci:/abs");
        assert_eq!(image("busybox"), "busybox");
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        let error = |text: &str| {
            let error = read(text).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        };
        assert!(error("[]").ends_with("the message is [], but an object is expected"));
        assert!(error(r#"{"tasks": []}"#).contains("no task"));
        assert!(error(r#"{"command": {}, "data": "AAEC"}"#).contains("exclude each other"));
        assert!(
            error(r#"{"tasks": [{"name": "a"}, {"name": "a"}]}"#)
                .contains("two tasks have the id a")
        );
        assert!(error(r#"{"container": {}}"#).ends_with("container.type is missing"));
    }
}
