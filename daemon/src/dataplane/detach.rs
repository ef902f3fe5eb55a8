//! Off means off: every link, filter, map and pin goes.

use std::path::Path;

use dataplane_common::endpoint::EndpointConfig;

use super::attach::{self, AttachMethod};
use super::load::PinPaths;
use super::wire::Wire;
use super::{DataplaneError, DetachReport};

/// Removes every trace of the daemon that used these pins.
pub(super) fn detach(paths: &PinPaths) -> Result<DetachReport, DataplaneError> {
    let mut report = DetachReport::default();
    for ifindex in attach::attached_interfaces(&paths.links)? {
        attach::detach(AttachMethod::Tcx, &paths.links, ifindex, None);
        report.interfaces.push(ifindex);
    }
    for ifindex in clsact_interfaces(&paths.maps) {
        let ifname = interface_name(ifindex);
        attach::detach(
            AttachMethod::Clsact,
            &paths.links,
            ifindex,
            ifname.as_deref(),
        );
        if !report.interfaces.contains(&ifindex) {
            report.interfaces.push(ifindex);
        }
    }
    if let Ok(entries) = std::fs::read_dir(&paths.maps) {
        for entry in entries.flatten() {
            remove_file(&entry.path())?;
            report.maps += 1;
        }
    }
    for directory in [&paths.maps, &paths.links] {
        remove_dir(directory)?;
        if let Some(version) = directory.parent() {
            remove_dir(version)?;
        }
    }
    remove_dir(&paths.root)?;
    Ok(report)
}

/// Interfaces that exist and that the pinned `endpoints` map knows, for kernels whose attachments
/// leave no pin. (A namespace does not give an index out again before 2^31 others.)
pub(super) fn clsact_interfaces(maps: &Path) -> Vec<u32> {
    if AttachMethod::detect() == AttachMethod::Tcx {
        return Vec::new();
    }
    let Ok(data) = aya::maps::MapData::from_pin(maps.join("endpoints")) else {
        return Vec::new();
    };
    let map = aya::maps::Map::HashMap(data);
    match aya::maps::HashMap::<_, u32, Wire<EndpointConfig>>::try_from(map) {
        Ok(map) => map
            .keys()
            .filter_map(Result::ok)
            .filter(|&ifindex| interface_name(ifindex).is_some())
            .collect(),
        Err(_) => Vec::new(),
    }
}

fn interface_name(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex)
        .ok()?
        .into_string()
        .ok()
}

fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    std::fs::remove_file(path).map_err(|source| DataplaneError::Pin {
        operation: "remove",
        path: path.to_owned(),
        source,
    })
}

/// Removes an empty directory; one that is missing, or that another daemon still uses, is fine.
fn remove_dir(path: &Path) -> Result<(), DataplaneError> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        Err(source) => Err(DataplaneError::Pin {
            operation: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}
