//! `tepui executor`: what an agent starts for its tasks.

use std::collections::HashMap;

use tepui_oci::{DefaultRegistry, Store};

use super::Failure;
use crate::agent::Environment;
use crate::driver;
use crate::launcher::handle::Launcher;
use crate::seal;
use crate::settings::{ContentType, Settings};
use crate::supervise::supervisor::{Place, Supervisor, release_orphans, sweep};
use crate::supervise::{ContainerEvent, Containers};
use crate::task::Context;

/// Runs tasks for a Mesos agent, which starts it and sets MESOS_* in its environment
#[derive(Debug, clap::Args)]
pub struct Executor {
    #[command(flatten)]
    settings: Settings,
    /// Encoding of messages to and from the agent
    #[arg(long, env = "TEPUI_CONTENT_TYPE", value_enum, default_value_t)]
    content_type: ContentType,
    /// Command of tasks that bring none
    #[arg(last = true)]
    command: Vec<String>,
}

impl Executor {
    /// Serves the agent until there is nothing left to do.
    ///
    /// # Errors
    /// When the environment is not that of an executor, or the agent refuses us.
    pub fn run(mut self) -> Result<i32, Failure> {
        self.settings.make_absolute()?;
        let variables: HashMap<String, String> = std::env::vars().collect();
        let environment = Environment::from_variables(&variables)?;
        let default_registry = self.settings.default_registry()?;
        let refusal = super::refusal(&self.settings);
        if refusal.is_some() {
            return self.refuse_all(&environment, default_registry, refusal);
        }
        seal::protect_own_program(seal::Method::Copy)?;
        // After the program executed itself again, so that it is said once; a misspelt name is told now and not by each task.
        super::warn_of_what_is_left_out(&self.settings)?;
        let opened = Store::open(&self.settings.store_dir).map_err(Failure::from);
        let (launcher, store) = match opened.and_then(|store| Ok((Launcher::start()?, store))) {
            Ok(both) => both,
            // The scheduler is told why, and not only that the executor ended.
            Err(error) => {
                let refusal = Some(crate::report::chain(error.as_ref()));
                return self.refuse_all(&environment, default_registry, refusal);
            }
        };
        let state_dir = self.settings.state_dir.clone();
        let recovery = {
            let state_dir = state_dir.clone();
            let layers = store.writable_layers();
            std::thread::spawn(move || {
                release_orphans(&state_dir);
                // Large layers are not worth waiting for: what is not done when we end is done by the next start.
                drop(std::thread::spawn(move || sweep(&layers)));
            })
        };
        let place = Place {
            state_dir,
            isolation: self.settings.isolation.clone(),
        };
        let options = driver::Options {
            content_type: self.content_type,
        };
        let context = Context::new(
            self.settings,
            default_registry,
            self.command,
            &environment,
            None,
        );
        let runtime = super::runtime()?;
        let status = runtime.block_on(async {
            let containers = Supervisor::new(launcher, store, place)?;
            let prepare =
                |wanted: driver::Wanted<'_>| context.request(wanted.task, wanted.in_group);
            Ok::<_, Failure>(driver::run(&environment, options, prepare, containers).await?)
        });
        // A pull that was given up must not hold us.
        runtime.shutdown_background();
        if recovery.join().is_err() {
            tracing::error!("the release of what dead executors left did not end well");
        }
        status
    }

    /// Subscribes all the same, so that the scheduler is told why.
    fn refuse_all(
        self,
        environment: &Environment,
        default_registry: Option<DefaultRegistry>,
        refusal: Option<String>,
    ) -> Result<i32, Failure> {
        let options = driver::Options {
            content_type: self.content_type,
        };
        let context = Context::new(
            self.settings,
            default_registry,
            self.command,
            environment,
            refusal,
        );
        let prepare = |wanted: driver::Wanted<'_>| context.request(wanted.task, wanted.in_group);
        super::runtime()?
            .block_on(async { Ok(driver::run(environment, options, prepare, NoContainers).await?) })
    }
}

/// Where no container can be: every task is refused before it gets here.
struct NoContainers;

impl Containers for NoContainers {
    type Request = crate::supervise::request::Request;

    fn launch(&mut self, _: &str, _: Self::Request) {}

    fn terminate(&mut self, _: &str) {}

    fn destroy(&mut self, _: &str) {}

    async fn next_event(&mut self) -> (String, ContainerEvent) {
        std::future::pending().await
    }
}
