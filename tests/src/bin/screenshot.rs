//! `make screenshot`: what the guest that `make run` started shows, into `target/screenshot.png`.

use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use serde_json::json;
use vringlet_tests::project_root;
use vringlet_tests::qemu::{GPU, SCREENSHOT_SOCKET, utf8};
use vringlet_tests::qmp::Qmp;

fn main() -> Result<()> {
    let stream = UnixStream::connect(project_root().join(SCREENSHOT_SOCKET))
        .context("no guest is running: `make run` starts one")?;
    let file = project_root().join("target/screenshot.png");
    let arguments = json!({ "filename": utf8(&file)?, "format": "png", "device": GPU, "head": 0 });
    Qmp::new(stream)?.execute("screendump", arguments)?;
    println!("target/screenshot.png");
    Ok(())
}
