package main

import "testing"

func TestACLText(t *testing.T) {
	const obj = "\xff\xff\xff\xff"
	for _, c := range []struct{ in, want string }{
		{"\x02\x00\x00\x00\x01\x00\x07\x00" + obj + "\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x01\x00" + obj + "\x08\x00\x02\x00\x00\x00\x00\x80\x10\x00\x06\x00" + obj + "\x20\x00\x00\x00" + obj,
			"user::rwx,user:1000:r--,group::--x,group:2147483648:-w-,mask::rw-,other::---"},
		{"", ""},
		{"\x02\x00\x00\x00", ""},
		{"\x01\x00\x00\x00\x01\x00\x07\x00" + obj, ""},
		{"\x02\x00\x00\x00\x01\x00\x07\x00" + obj + "x", ""},
		{"\x02\x00\x00\x00\x03\x00\x07\x00" + obj, ""},
	} {
		if got, ok := aclText([]byte(c.in)); got != c.want || ok != (c.want != "") {
			t.Errorf("aclText(%q) = %q, %v; want %q", c.in, got, ok, c.want)
		}
	}
}
