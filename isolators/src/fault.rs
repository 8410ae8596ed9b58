//! Faults on purpose, for the tests of what a failed or killed launch leaves behind.
//!
//! The variable `TEPUI_FAULT` of a build with the feature `undefended` (see `undefended.rs`) says what goes wrong:
//!
//! | value | what happens |
//! |---|---|
//! | `list:FILE` | nothing; each point that is passed and each step of each plan is a line in the file |
//! | `step:N` | step N of the plan fails with EIO, in place of being carried out |
//! | `fail:POINT` | the point fails |
//! | `kill:POINT` | the process kills itself there |
//! | `hold:SOCKET:POINT` | it says so on the socket and waits until that is closed |
//! | `hold-step:SOCKET:N` | the same before step N, by the container's own process |
//!
//! In every other build there is nothing of this: the functions are empty.

#[cfg(feature = "undefended")]
pub use armed::{arm, at_step, point, variable};
#[cfg(not(feature = "undefended"))]
pub use vanished::{arm, at_step, point, variable};

#[cfg(not(feature = "undefended"))]
mod vanished {
    use std::fmt::{Debug, Display};

    /// A point of the parent where something can go wrong: never.
    #[inline(always)]
    pub fn point(_name: impl Display) -> std::io::Result<()> {
        Ok(())
    }

    /// Before the clone: nothing goes wrong in this plan.
    #[inline(always)]
    pub fn arm<T: Debug + Display>(_steps: &[T]) {}

    /// In the child, before a step: nothing goes wrong.
    #[inline(always)]
    pub const fn at_step(_index: usize) -> Result<(), rustix::io::Errno> {
        Ok(())
    }

    /// What a process with an environment of its own takes over: nothing.
    #[inline(always)]
    pub const fn variable() -> Option<&'static str> {
        None
    }
}

#[cfg(feature = "undefended")]
mod armed {
    use std::fmt::{Debug, Display};
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::OnceLock;

    use rustix::io::Errno;
    use rustix::process::{Signal, getpid, kill_process};

    const VARIABLE: &str = "TEPUI_FAULT";

    /// What is to go wrong at a step, found out before the clone: the child may not allocate.
    static AT_STEP: OnceLock<(usize, Option<UnixStream>)> = OnceLock::new();

    fn fault() -> Option<(String, String)> {
        let text = std::env::var(VARIABLE).ok()?;
        let (kind, rest) = text.split_once(':')?;
        Some((kind.to_owned(), rest.to_owned()))
    }

    /// A point of the parent where something can go wrong.
    ///
    /// # Errors
    /// When it is to fail.
    pub fn point(name: impl Display) -> io::Result<()> {
        let Some((kind, rest)) = fault() else {
            return Ok(());
        };
        let name = name.to_string();
        match kind.as_str() {
            "list" => write_list(&rest, &format!("point\t{name}\n")),
            "fail" if rest == name => {
                let message = format!("a fault on purpose at the point {name:?}");
                return Err(io::Error::other(message));
            }
            "kill" if rest == name => {
                // A process 1 is not killed from inside its own pid namespace (pid_namespaces(7)).
                let _ = kill_process(getpid(), Signal::KILL);
                std::process::exit(137);
            }
            "hold" => match rest.split_once(':') {
                Some((socket, held)) if held == name => {
                    // Only the first who comes here is held.
                    let Ok(mut socket) = UnixStream::connect(socket) else {
                        return Ok(());
                    };
                    socket.write_all(b"!")?;
                    // It ends with an error when its other end is gone: all the same.
                    let _ = socket.read(&mut [0]);
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// Finds out before the clone what is to go wrong in this plan.
    ///
    /// # Panics
    /// When the variable does not say it: only a test sets it.
    pub fn arm<T: Debug + Display>(steps: &[T]) {
        let Some((kind, rest)) = fault() else { return };
        let number = |text: &str| text.parse::<usize>().expect("the number of a step") - 1;
        match kind.as_str() {
            "list" => {
                for (index, step) in steps.iter().enumerate() {
                    let line = format!("step\t{}\t{step}\t{step:?}\n", index + 1);
                    write_list(&rest, &line);
                }
            }
            "step" => drop(AT_STEP.set((number(&rest), None))),
            "hold-step" => {
                let (socket, step) = rest.split_once(':').expect("a socket and a step");
                let socket = UnixStream::connect(socket).expect("the test listens");
                drop(AT_STEP.set((number(step), Some(socket))));
            }
            _ => {}
        }
    }

    /// In the child, before a step.
    ///
    /// # Errors
    /// When it is to fail.
    pub fn at_step(index: usize) -> Result<(), Errno> {
        match AT_STEP.get() {
            Some((wanted, held)) if *wanted == index => match held {
                None => Err(Errno::IO),
                Some(socket) => {
                    rustix::io::write(socket, b"!")?;
                    // It ends with an error when its other end is gone: all the same.
                    let _ = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut [0u8]));
                    Ok(())
                }
            },
            _ => Ok(()),
        }
    }

    /// The variable, for a process with an environment of its own to take over.
    pub const fn variable() -> Option<&'static str> {
        Some(VARIABLE)
    }

    fn write_list(file: &str, line: &str) {
        let mut list = File::options()
            .create(true)
            .append(true)
            .open(file)
            .expect("the test's list");
        list.write_all(line.as_bytes()).expect("the test's list");
    }
}
