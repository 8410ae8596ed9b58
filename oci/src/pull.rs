//! From a reference to layers in the store: what is missing is fetched, verified, unpacked once, and published whole.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinSet, spawn_blocking};

use crate::archive::{Archive, resolve_docker};
use crate::config::{ConfigDocument, ImageConfig};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layout::{Layout, no_platform};
use crate::manifest::{CONFIG_LIMIT, Descriptor, Document, Manifest, choose, host_architecture};
use crate::reference::{ImageReference, RegistryReference};
use crate::registry::Client;
use crate::source::{Blob, LocalImage};
use crate::store::{Known, LayerName, LayerRecord, Lock, Store, chain_ids};
use crate::unpack::view::View;
use crate::unpack::{Cancel, Limits, Promise, unpack};

/// Blobs downloaded at the same time.
const DOWNLOADS: usize = 3;
/// overlayfs takes no more (fs/overlayfs/params.h, OVL_MAX_STACK).
const LAYERS: usize = 500;
/// Indexes within indexes; more is not worth following.
const DEPTH: usize = 4;

/// How to pull.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullOptions {
    /// The registry must answer. Otherwise, when it cannot be reached, what its name meant last serves, with a warning.
    pub always: bool,
    /// What a name meant last is taken without asking the registry, as Mesos does with `Image.cached`.
    pub cached: bool,
    /// The architecture in the words of images; by default this node's.
    pub architecture: String,
    /// What one layer may ask for.
    pub limits: Limits,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            always: false,
            cached: false,
            architecture: host_architecture().into(),
            limits: Limits::default(),
        }
    }
}

/// An image whose layers are in the store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Image {
    /// The reference, in full.
    pub name: String,
    /// The digest of its manifest; of its configuration where it has no manifest (docker archives).
    pub digest: Digest,
    /// The digest of its configuration: Docker's image id.
    pub id: Digest,
    /// What it says about its containers.
    pub config: ImageConfig,
    /// Uppermost first, relative to [`Store::layers_directory`]: overlayfs' lowerdir.
    pub layers: Vec<LayerName>,
    /// Digests of the layers' content, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Makes an image available: afterwards everything is local.
///
/// Dropping the future cancels the pull; nothing half-done is visible then, or at any other time.
pub async fn pull(
    store: &Store,
    reference: &ImageReference,
    options: &PullOptions,
) -> Result<Image> {
    let name = reference.to_string();
    let result = match reference {
        ImageReference::Registry(registry) => from_registry(store, registry, &name, options).await,
        local => from_disk(store, local.clone(), &name, options).await,
    };
    result.map_err(|error| error.of_image(&name))
}

/// What is needed of an image, once its documents are known.
#[derive(Clone)]
struct Plan {
    name: String,
    digest: Digest,
    id: Digest,
    config: ImageConfig,
    diff_ids: Vec<Digest>,
    chains: Vec<Digest>,
    /// Of each layer, as far as anything is promised about its blob.
    blobs: Vec<Option<(Digest, u64)>>,
    limits: Limits,
}

impl Plan {
    fn new(
        name: &str,
        digest: Digest,
        config: &[u8],
        blobs: Vec<Option<(Digest, u64)>>,
        options: &PullOptions,
    ) -> Result<Self> {
        let id = Digest::of(config);
        let document = ConfigDocument::parse(config, &id, &options.architecture)?;
        let diff_ids = document.rootfs.diff_ids;
        let rule = if diff_ids.len() != blobs.len() {
            format!(
                "its configuration has {} diff ids for {} layers",
                diff_ids.len(),
                blobs.len()
            )
        } else if diff_ids.is_empty() {
            "it has no layers".into()
        } else if diff_ids.len() > LAYERS {
            format!(
                "it has {} layers, and overlayfs takes {LAYERS}",
                diff_ids.len()
            )
        } else {
            let chains = chain_ids(&diff_ids);
            let (name, limits) = (name.into(), options.limits);
            return Ok(Self {
                name,
                digest,
                id,
                config: document.config,
                diff_ids,
                chains,
                blobs,
                limits,
            });
        };
        Err(Error::refused(format!("the image {digest}"), rule))
    }

    fn layer_name(&self, at: usize) -> LayerName {
        LayerName::of_chain(&self.chains[at])
    }

    /// The image, if all of its layers are published.
    fn complete(&self, store: &Store) -> Result<Option<Image>> {
        let mut layers = Vec::new();
        let mut hidden = false;
        for at in (0..self.chains.len()).rev() {
            let Some(record) = store.layer(&self.chains[at])? else {
                return Ok(None);
            };
            if !hidden {
                layers.push(self.layer_name(at));
            }
            hidden |= record.hides_lower;
        }
        Ok(Some(Image {
            name: self.name.clone(),
            digest: self.digest,
            id: self.id,
            config: self.config.clone(),
            layers,
            diff_ids: self.diff_ids.clone(),
        }))
    }

    /// Locks of the layers that are not published, lowest first: everyone takes them in this order, so nobody waits
    /// for one who waits for him.
    fn lock_missing(&self, store: &Store, cancel: &Cancel) -> Result<Vec<Missing>> {
        let mut missing: Vec<Missing> = Vec::new();
        for (at, chain) in self.chains.iter().enumerate() {
            // The same layer may come twice in a chain only with different chain ids.
            if store.layer(chain)?.is_some() {
                continue;
            }
            let lock = Lock::take(store, self.layer_name(at).as_str(), cancel)?;
            if store.layer(chain)?.is_none() {
                missing.push(Missing { at, _lock: lock });
            }
        }
        Ok(missing)
    }

    /// Unpacks what is missing, lowest first, and publishes it. What is whole stays even if a later layer fails.
    fn unpack(
        &self,
        store: &Store,
        missing: Vec<Missing>,
        mut fetch: impl FnMut(usize) -> Result<Blob>,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut ready = Vec::new();
        let mut view = View::default();
        let mut result = Ok(());
        for at in 0..self.chains.len() {
            let name = self.layer_name(at);
            let (handle, hides_lower) = if missing.iter().any(|layer| layer.at == at) {
                match self.unpack_one(store, at, &view, &mut fetch, cancel) {
                    Ok(unpacked) => {
                        let record = LayerRecord {
                            chain: self.chains[at],
                            hides_lower: unpacked.1,
                        };
                        ready.push((name, record));
                        unpacked
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            } else {
                let record = store.layer(&self.chains[at])?;
                (
                    store.open_layer(&name)?,
                    record.is_some_and(|record| record.hides_lower),
                )
            };
            if hides_lower {
                view.clear();
            }
            view.push_upper(handle);
        }
        if cancel.load(Ordering::Relaxed) {
            ready
                .iter()
                .try_for_each(|(name, _)| store.discard_layer(name))?;
            return Err(Error::Cancelled);
        }
        if !ready.is_empty() {
            store.publish_layers(&ready)?;
        }
        drop(missing);
        result
    }

    fn unpack_one(
        &self,
        store: &Store,
        at: usize,
        view: &View,
        fetch: &mut impl FnMut(usize) -> Result<Blob>,
        cancel: &Cancel,
    ) -> Result<(Arc<OwnedFd>, bool)> {
        let blob = fetch(at)?;
        let name = self.layer_name(at);
        let promise = Promise {
            blob: self.blobs[at],
            diff_id: self.diff_ids[at],
            limits: self.limits,
        };
        let root = store.begin_layer(&name)?;
        match unpack(blob.reader(), &promise, root.clone(), view.clone(), cancel) {
            Ok(hides_lower) => Ok((root, hides_lower)),
            Err(source) => {
                store.discard_layer(&name)?;
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                let layer = promise
                    .blob
                    .map_or(promise.diff_id, |(digest, _)| digest)
                    .to_string();
                Err(Error::Layer { layer, source })
            }
        }
    }
}

/// A layer that this pull will unpack.
struct Missing {
    at: usize,
    _lock: Lock,
}

/// Tells the blocking half that nobody waits any more.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs on a thread where waiting for disks and locks holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Cancelled),
        },
    }
}

async fn from_disk(
    store: &Store,
    reference: ImageReference,
    name: &str,
    options: &PullOptions,
) -> Result<Image> {
    let cancel = Cancel::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(cancel.clone());
    let (store, name, options) = (store.clone(), name.to_owned(), options.clone());
    blocking(move || {
        let image = resolve(&store, &reference, &options.architecture)?;
        let blobs = image.layers.iter().map(|layer| layer.promise).collect();
        let plan = Plan::new(&name, image.digest, &image.config, blobs, &options)?;
        if let Some(complete) = plan.complete(&store)? {
            return Ok(complete);
        }
        let missing = plan.lock_missing(&store, &cancel)?;
        plan.unpack(&store, missing, |at| (image.layers[at].open)(), &cancel)?;
        finished(&plan, &store)
    })
    .await
}

fn resolve(store: &Store, reference: &ImageReference, architecture: &str) -> Result<LocalImage> {
    match reference {
        ImageReference::OciLayout { dir, tag } => {
            Layout::Directory(dir.clone()).resolve(tag.as_deref(), architecture)
        }
        ImageReference::OciArchive { file, tag } => {
            let archive = Arc::new(Archive::open(file, store)?);
            Layout::Archive(archive).resolve(tag.as_deref(), architecture)
        }
        ImageReference::DockerArchive { file, tag } => {
            resolve_docker(Archive::open(file, store)?, tag.as_deref())
        }
        ImageReference::Registry(other) => Err(Error::refused(
            other.to_string(),
            "it is not on this machine",
        )),
    }
}

fn finished(plan: &Plan, store: &Store) -> Result<Image> {
    plan.complete(store)?.ok_or_else(|| {
        Error::refused(
            format!("the image {}", plan.digest),
            "a layer of it vanished from the store",
        )
    })
}

async fn from_registry(
    store: &Store,
    reference: &RegistryReference,
    name: &str,
    options: &PullOptions,
) -> Result<Image> {
    let known = store.known(name);
    let local = |known: &Known| {
        Plan::from_store(name, &known.manifest, store, options)?
            .map_or(Ok(None), |plan| plan.complete(store))
    };
    if let Some(digest) = &reference.digest {
        // A digest means the same for ever.
        let known = known.filter(|known| known.digest == *digest);
        if let Some(image) = known.as_ref().map(local).transpose()?.flatten() {
            return Ok(image);
        }
    }
    let client = Arc::new(Client::new(reference, name.into())?);
    let wanted = match &reference.digest {
        Some(digest) => digest.to_string(),
        None => reference.tag.clone().unwrap_or_else(|| "latest".into()),
    };
    let known = store.known(name).filter(|_| reference.digest.is_none());
    if let Some(known) = &known
        && let Some(image) = local(known)?
    {
        if options.cached && !options.always {
            return Ok(image);
        }
        match client.digest_of(&wanted).await {
            Ok(Some(digest)) if digest == known.digest => return Ok(image),
            Ok(_) => {}
            Err(error @ Error::Connection { .. }) if !options.always => {
                tracing::warn!(%error, "taking the image that the name meant last");
                return Ok(image);
            }
            Err(error) => return Err(error),
        }
    }
    let (digest, manifest_digest, manifest) =
        fetch_manifest(&client, &wanted, store, options).await?;
    let config = match store.blob(&manifest.config.digest) {
        Some(bytes) if bytes.len() as u64 == manifest.config.size => bytes,
        _ => client.document(&manifest.config, CONFIG_LIMIT).await?,
    };
    let plan = Plan::of_manifest(name, manifest_digest, &manifest, &config, options)?;
    if plan.complete(store)?.is_none() {
        download(&client, &plan, manifest.layers, store).await?;
    }
    let (store, name) = (store.clone(), name.to_owned());
    blocking(move || {
        let image = finished(&plan, &store)?;
        store.put_blob(&config)?;
        store.remember(&Known {
            name,
            digest,
            manifest: manifest_digest,
        })?;
        Ok(image)
    })
    .await
}

impl Plan {
    fn of_manifest(
        name: &str,
        digest: Digest,
        manifest: &Manifest,
        config: &[u8],
        options: &PullOptions,
    ) -> Result<Self> {
        let blobs = manifest
            .layers
            .iter()
            .map(|layer| Some((layer.digest, layer.size)))
            .collect();
        Self::new(name, digest, config, blobs, options)
    }

    /// From the documents in the store; none if they are not all there, or are for another architecture.
    fn from_store(
        name: &str,
        digest: &Digest,
        store: &Store,
        options: &PullOptions,
    ) -> Result<Option<Self>> {
        let Some(bytes) = store.blob(digest) else {
            return Ok(None);
        };
        let Document::Manifest(manifest) = Document::parse(&bytes, None)? else {
            return Ok(None);
        };
        let Some(config) = store.blob(&manifest.config.digest) else {
            return Ok(None);
        };
        Ok(Self::of_manifest(name, *digest, &manifest, &config, options).ok())
    }
}

/// From a tag or digest, perhaps through indexes, to the manifest: the first digest, the last one, and its document.
async fn fetch_manifest(
    client: &Client,
    wanted: &str,
    store: &Store,
    options: &PullOptions,
) -> Result<(Digest, Digest, Manifest)> {
    let mut reference = wanted.to_owned();
    let mut first = None;
    let mut announced: Option<Descriptor> = None;
    for _ in 0..DEPTH {
        let (bytes, label) = client.manifest(&reference).await?;
        let digest = Digest::of(&bytes);
        if let Some(descriptor) = &announced {
            crate::layout::check_document(&format!("the manifest {digest}"), descriptor, &bytes)?;
        }
        let first = *first.get_or_insert(digest);
        let label = announced
            .as_ref()
            .map(|descriptor| descriptor.media_type.clone())
            .or(label);
        match Document::parse(&bytes, label.as_deref())? {
            Document::Manifest(manifest) => {
                let store = store.clone();
                blocking(move || store.put_blob(&bytes)).await?;
                return Ok((first, digest, manifest));
            }
            Document::Index(entries) => {
                let chosen = choose(&entries, &options.architecture);
                let missing =
                    |present| no_platform("the index".as_ref(), &options.architecture, present);
                let chosen = chosen.map_err(missing)?.clone();
                reference = chosen.digest.to_string();
                announced = Some(chosen);
            }
        }
    }
    Err(Error::refused(
        "the index",
        "its indexes are nested too deeply",
    ))
}

/// Downloads what is missing, a few blobs at a time, while what is there already is unpacked.
async fn download(
    client: &Arc<Client>,
    plan: &Plan,
    layers: Vec<Descriptor>,
    store: &Store,
) -> Result<()> {
    let cancel = Cancel::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(cancel.clone());
    let locking = (plan.clone(), store.clone(), cancel.clone());
    let missing = blocking(move || locking.0.lock_missing(&locking.1, &locking.2)).await?;
    let slots = Arc::new(Semaphore::new(DOWNLOADS));
    // Aborted when dropped.
    let mut downloads = JoinSet::new();
    let mut arrivals: Vec<Option<oneshot::Receiver<Result<Blob>>>> =
        layers.iter().map(|_| None).collect();
    for layer in &missing {
        let (sender, receiver) = oneshot::channel();
        arrivals[layer.at] = Some(receiver);
        let (client, store, slots) = (client.clone(), store.clone(), slots.clone());
        let descriptor = layers[layer.at].clone();
        downloads.spawn(async move {
            let _slot = slots.acquire().await;
            // Nobody receives it only if the pull has failed already.
            drop(sender.send(client.blob(&descriptor, &store).await));
        });
    }
    let (plan, store) = (plan.clone(), store.clone());
    blocking(move || {
        let fetch = |at: usize| {
            let arrival = arrivals
                .get_mut(at)
                .and_then(Option::take)
                .and_then(|receiver| receiver.blocking_recv().ok());
            arrival.unwrap_or(Err(Error::Cancelled))
        };
        plan.unpack(&store, missing, fetch, &cancel)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Callers may run pulls on runtimes with many threads.
    #[test]
    fn a_pull_can_move_between_threads() {
        fn is_send<T: Send>(
            _: impl Fn(&'static Store, &'static ImageReference, &'static PullOptions) -> T,
        ) {
        }
        is_send(pull);
    }
}
