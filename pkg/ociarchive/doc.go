// Package ociarchive carries an image as a tar stream, in both directions.
//
// Written is an OCI image layout in an order that can be read without a
// temporary file: oci-layout, index.json, manifest, config, layers from the
// lowest up. Read is any order of an OCI image layout, and what docker save
// writes; what comes too early is spooled as it is, compressed.
package ociarchive
