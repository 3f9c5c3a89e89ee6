// Package nbddev attaches devices to Linux's NBD driver, and keeps what is
// needed to take them over when their server has died.
//
// A device is configured over generic netlink
// (include/uapi/linux/nbd-netlink.h): the driver gets one end of a socket pair,
// the server keeps the other. When the server dies, reads wait; the next server
// gives the driver a new socket, and they go on. Where the driver has no netlink
// (before Linux 4.12), ioctls attach a device just as well, but no server can
// take it over.
package nbddev
