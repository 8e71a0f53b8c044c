//! The QEMU matrix. Every cell is a test with a name, judged from outside the guest.
//!
//! `make test CELL=name` runs the cell of that name, or all whose name contains it; nextest lists and runs the same
//! cells, each in a process of its own.

mod matrix {
    pub(crate) mod boot;
    pub(crate) mod card;
    pub(crate) mod dashboard;
    pub(crate) mod disk;
    pub(crate) mod files;
    pub(crate) mod gpu;
    pub(crate) mod kvm;
    pub(crate) mod net;
    pub(crate) mod picture;
    pub(crate) mod pmem;
    pub(crate) mod ring;
    pub(crate) mod rng;
    pub(crate) mod run;
    pub(crate) mod services;
    pub(crate) mod shell;
    pub(crate) mod sound;
    pub(crate) mod sound_file;
    pub(crate) mod stalled;
    pub(crate) mod web;
}

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};
use vringlet_tests::cell::{self, Cell};

/// How many cells run at once: each is a QEMU that can keep a core busy.
const AT_ONCE: usize = 2;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let cells = [
        matrix::ring::cells(),
        matrix::boot::cells(),
        matrix::disk::cells(),
        matrix::files::cells(),
        matrix::net::cells(),
        matrix::pmem::cells(),
        matrix::rng::cells(),
        matrix::card::cells(),
        matrix::gpu::cells(),
        matrix::picture::cells(),
        matrix::dashboard::cells(),
        matrix::run::cells(),
        matrix::services::cells(),
        matrix::shell::cells(),
        matrix::sound::cells(),
        matrix::sound_file::cells(),
        matrix::stalled::cells(),
        matrix::web::cells(),
        matrix::kvm::cells(),
    ]
    .concat();
    // A name that is whole means that cell, even where other names contain it.
    if let Some(filter) = &arguments.filter
        && cells.iter().any(|cell| cell.name == *filter)
    {
        arguments.exact = true;
    }
    if !arguments.list {
        match cell::accelerator() {
            Ok(choice) => eprintln!("cells run on {choice} unless they say otherwise"),
            Err(error) => {
                eprintln!("{error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    libtest_mimic::run(&arguments, cells.into_iter().map(Spec::trial).collect()).exit_code()
}

type Body = dyn Fn(&Cell) -> Result<()> + Send + Sync;

/// A cell before it runs.
#[derive(Clone)]
pub(crate) struct Spec {
    name: String,
    body: Arc<Body>,
    unavailable: fn() -> Option<String>,
}

impl Spec {
    pub(crate) fn new(
        name: impl Into<String>,
        body: impl Fn(&Cell) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Spec {
            name: name.into(),
            body: Arc::new(body),
            unavailable: || None,
        }
    }

    /// The cell is passed over, and said to be, on a machine where this gives a reason.
    pub(crate) fn unless(self, unavailable: fn() -> Option<String>) -> Self {
        Spec {
            unavailable,
            ..self
        }
    }

    fn trial(self) -> Trial {
        let name = self.name.clone();
        Trial::ignorable_test(self.name, move || {
            if let Some(reason) = (self.unavailable)() {
                return Ok(Completion::ignored_with(reason));
            }
            match Cell::run(&name, &*self.body) {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => Err(format!("{error:#}").into()),
            }
        })
    }
}
