//! Loading: bpffs, the object, its maps, and what a former daemon left pinned.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use dataplane_common::conntrack::{CtEntry, CtKey4, CtKey6};
use dataplane_common::endpoint::EndpointConfig;
use dataplane_common::identity::{AddressKey, AddressValue, CidrKey};
use dataplane_common::policy::{PolicyKey, PolicyMeta, PolicyValue};
use dataplane_common::stats::{Counter, CpuState};
use dataplane_common::{Direction, LAYOUT_VERSION};

use super::attach::program_name;
use super::states::StateWords;
use super::wire::Wire;
use super::{DataplaneConfig, DataplaneError};

/// Maps of the object; all are pinned, so that they outlive the daemon.
const MAP_NAMES: [&str; 13] = [
    "endpoints",
    "endpoint_states",
    "policies",
    "policy_entries",
    "ids",
    "cidrs",
    "ct4",
    "ct6",
    "fragments",
    "cpu_state",
    "packet_stats",
    "lost_events",
    "events",
];

/// Paths of one daemon's pins.
#[derive(Clone, Debug)]
pub(super) struct PinPaths {
    pub(super) root: PathBuf,
    pub(super) maps: PathBuf,
    pub(super) links: PathBuf,
}

impl PinPaths {
    pub(super) fn new(bpffs: &Path) -> Self {
        let root = bpffs.to_owned();
        let version = root.join(format!("v{LAYOUT_VERSION}"));
        Self {
            root,
            maps: version.join("maps"),
            links: version.join("links"),
        }
    }
}

/// Userspace handles of every map.
pub(super) struct Maps {
    pub(super) endpoints: HashMap<MapData, u32, Wire<EndpointConfig>>,
    pub(super) states: StateWords,
    pub(super) policies: Array<MapData, Wire<PolicyMeta>>,
    pub(super) policy_entries: HashMap<MapData, Wire<PolicyKey>, Wire<PolicyValue>>,
    pub(super) policy_entries_max: u32,
    pub(super) ids: HashMap<MapData, Wire<AddressKey>, Wire<AddressValue>>,
    pub(super) ids_max: u32,
    pub(super) cidrs: LpmTrie<MapData, Wire<CidrKey>, u32>,
    pub(super) cidrs_max: u32,
    pub(super) ct4: HashMap<MapData, Wire<CtKey4>, Wire<CtEntry>>,
    pub(super) ct6: HashMap<MapData, Wire<CtKey6>, Wire<CtEntry>>,
    pub(super) cpu_state: PerCpuArray<MapData, Wire<CpuState>>,
    pub(super) packet_stats: PerCpuArray<MapData, Wire<Counter>>,
    pub(super) lost_events: PerCpuArray<MapData, u64>,
}

/// A loaded object.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    pub(super) events: RingBuf<MapData>,
    pub(super) paths: PinPaths,
}

/// Loads the object, adopting pinned maps of the same layout.
pub(super) fn load(config: &DataplaneConfig) -> Result<Loaded, DataplaneError> {
    let object = crate::bpf_object::bpf_object()?;
    let paths = PinPaths::new(&config.bpffs);
    require_bpffs(&paths.root)?;
    for directory in [&paths.maps, &paths.links] {
        std::fs::create_dir_all(directory).map_err(|source| DataplaneError::Pin {
            operation: "create",
            path: directory.clone(),
            source,
        })?;
    }
    let mut loader = EbpfLoader::new();
    for name in MAP_NAMES {
        loader.map_pin_path(name, paths.maps.join(name));
    }
    if let Some(entries) = config.conntrack_entries {
        loader
            .map_max_entries("ct4", entries)
            .map_max_entries("ct6", entries);
    }
    if let Some(entries) = config.policy_entries {
        loader.map_max_entries("policy_entries", entries);
    }
    let mut ebpf = loader
        .load(object)
        .map_err(|error| DataplaneError::Load(Box::new(error)))?;
    for direction in [Direction::Egress, Direction::Ingress] {
        let name = program_name(direction);
        program(&mut ebpf, direction)?
            .load()
            .map_err(|source| DataplaneError::Program {
                name,
                source: Box::new(source),
            })?;
    }
    let (maps, events) = take_maps(&mut ebpf)?;
    Ok(Loaded {
        ebpf,
        maps,
        events,
        paths,
    })
}

/// The program that judges a direction.
pub(super) fn program(
    ebpf: &mut Ebpf,
    direction: Direction,
) -> Result<&mut SchedClassifier, DataplaneError> {
    let name = program_name(direction);
    ebpf.program_mut(name)
        .ok_or(DataplaneError::Missing {
            kind: "program",
            name,
        })?
        .try_into()
        .map_err(|source: ProgramError| DataplaneError::Program {
            name,
            source: Box::new(source),
        })
}

fn take_maps(ebpf: &mut Ebpf) -> Result<(Maps, RingBuf<MapData>), DataplaneError> {
    fn typed<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DataplaneError>
    where
        T: TryFrom<Map, Error = aya::maps::MapError>,
    {
        let map = ebpf
            .take_map(name)
            .ok_or(DataplaneError::Missing { kind: "map", name })?;
        T::try_from(map).map_err(|source| DataplaneError::Map {
            operation: "open",
            map: name,
            source,
        })
    }

    let states = words(ebpf)?;
    let policy_entries_max = capacity(ebpf, "policy_entries")?;
    let ids_max = capacity(ebpf, "ids")?;
    let cidrs_max = capacity(ebpf, "cidrs")?;
    let maps = Maps {
        endpoints: typed(ebpf, "endpoints")?,
        states,
        policies: typed(ebpf, "policies")?,
        policy_entries_max,
        policy_entries: typed(ebpf, "policy_entries")?,
        ids_max,
        ids: typed(ebpf, "ids")?,
        cidrs_max,
        cidrs: typed(ebpf, "cidrs")?,
        ct4: typed(ebpf, "ct4")?,
        ct6: typed(ebpf, "ct6")?,
        cpu_state: typed(ebpf, "cpu_state")?,
        packet_stats: typed(ebpf, "packet_stats")?,
        lost_events: typed(ebpf, "lost_events")?,
    };
    Ok((maps, typed(ebpf, "events")?))
}

/// The kernel's handle of a map that has not been taken yet.
fn data<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, DataplaneError> {
    match ebpf.map(name) {
        Some(Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) => Ok(data),
        _ => Err(DataplaneError::Missing { kind: "map", name }),
    }
}

fn capacity(ebpf: &Ebpf, name: &'static str) -> Result<u32, DataplaneError> {
    let info = data(ebpf, name)?.info();
    info.map(|info| info.max_entries())
        .map_err(|source| DataplaneError::Map {
            operation: "inspect",
            map: name,
            source,
        })
}

fn words(ebpf: &Ebpf) -> Result<StateWords, DataplaneError> {
    const NAME: &str = "endpoint_states";
    let len = capacity(ebpf, NAME)?;
    StateWords::map(data(ebpf, NAME)?.fd().as_fd(), len).map_err(DataplaneError::Mmap)
}

/// Makes sure pins would land on a BPF file system: mounts one on `/sys/fs/bpf` if the directory is
/// below it and nothing is mounted there yet.
fn require_bpffs(root: &Path) -> Result<(), DataplaneError> {
    const DEFAULT_MOUNT: &str = "/sys/fs/bpf";
    if root.starts_with(DEFAULT_MOUNT) && !is_bpffs(Path::new(DEFAULT_MOUNT)) {
        nix::mount::mount(
            Some("bpf"),
            DEFAULT_MOUNT,
            Some("bpf"),
            nix::mount::MsFlags::MS_NOSUID
                | nix::mount::MsFlags::MS_NODEV
                | nix::mount::MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(|errno| DataplaneError::Pin {
            operation: "mount a BPF file system on",
            path: PathBuf::from(DEFAULT_MOUNT),
            source: io::Error::from(errno),
        })?;
    }
    let existing = root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        Ok(())
    } else {
        Err(DataplaneError::NotBpffs(root.to_owned()))
    }
}

/// Whether a path lies on a BPF file system.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}
