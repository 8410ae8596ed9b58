//! Pulls an image into a store and prints what it became: `pull STORE REFERENCE [DEFAULT-REGISTRY]`.

use std::path::Path;

use tepui_oci::{DefaultRegistry, ImageReference, PullOptions, Store, pull, rootfs};

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, reference, default @ ..] = arguments.as_slice() else {
        return Err("usage: pull STORE REFERENCE [DEFAULT-REGISTRY]".into());
    };
    let default = default
        .first()
        .map(|text| text.parse::<DefaultRegistry>())
        .transpose()?;
    let result = run(Path::new(store), reference, default.as_ref()).await;
    if let Err(error) = &result {
        let mut source = error.source();
        eprint!("{error}");
        while let Some(error) = source {
            eprint!(": {error}");
            source = error.source();
        }
        eprintln!();
        std::process::exit(1);
    }
    Ok(())
}

async fn run(
    store: &Path,
    reference: &str,
    default: Option<&DefaultRegistry>,
) -> Result<(), Failure> {
    let store = Store::open(store)?;
    let reference = ImageReference::parse(reference, default)?;
    let image = pull(&store, &reference, &PullOptions::default()).await?;
    println!("{} {}", image.name, image.digest);
    println!(
        "layers {:?}",
        image
            .layers
            .iter()
            .map(|layer| layer.as_str())
            .collect::<Vec<_>>()
    );
    println!("config {:?}", image.config);
    if let Some(user) = &image.config.user {
        println!("user {:?}", rootfs::resolve_user(&store, &image, user)?);
    }
    Ok(())
}
