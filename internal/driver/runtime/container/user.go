package container

import (
	"io"
	"os"
	"strconv"
	"strings"

	"atoll/internal/errs"
	"atoll/internal/sys/mount"
)

// user is who a process runs as, inside.
type user struct {
	UID, GID uint32
	Groups   []uint32
	Home     string
}

// maxAccountFile bounds what is read of an image's passwd and group.
const maxAccountFile = 1 << 20

// lookupUser resolves "name", "uid", "name:group" and so on in the instance's own
// files. root is its root directory; nothing outside is ever read.
func lookupUser(root *os.File, who string, count uint32) (user, error) {
	passwd, group := readAccounts(root, "/etc/passwd"), readAccounts(root, "/etc/group")
	u, err := resolveUser(who, passwd, group)
	if err != nil {
		return u, err
	}
	for _, id := range append([]uint32{u.UID, u.GID}, u.Groups...) {
		if id >= count {
			return u, errs.InvalidFields("instance", []errs.Field{{Field: "spec.user", Value: who, Rule: "IDs must be below " + strconv.Itoa(int(count)), Example: "1000:1000"}})
		}
	}
	return u, nil
}

func readAccounts(root *os.File, path string) string {
	f, err := mount.OpenIn(root, path, os.O_RDONLY, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(f, maxAccountFile))
	if err != nil {
		return ""
	}
	return string(b)
}

func resolveUser(who, passwd, group string) (user, error) {
	name, grp, hasGroup := strings.Cut(who, ":")
	if name == "" {
		name = "0"
	}
	u := user{Home: "/"}
	bad := func(part, file string) error {
		return errs.InvalidFields("instance", []errs.Field{{Field: "spec.user", Value: part, Rule: "is neither a number nor a name in the image's " + file, Example: "1000:1000"}})
	}
	id, numeric := number32(name)
	login, found := "", false
	for l := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(l), ":")
		if len(f) < 6 {
			continue
		}
		uid, ok := number32(f[2])
		gid, ok2 := number32(f[3])
		if !ok || !ok2 || f[0] != name && !(numeric && uid == id) {
			continue
		}
		u.UID, u.GID, login, found = uid, gid, f[0], true
		if strings.HasPrefix(f[5], "/") {
			u.Home = f[5]
		}
		break
	}
	if !found {
		if !numeric {
			return u, bad(name, "/etc/passwd")
		}
		u.UID = id
		if id == 0 {
			u.Home = "/root"
		}
	}
	if hasGroup && grp != "" {
		gid, ok := number32(grp)
		for l := range strings.Lines(group) {
			if f := strings.Split(strings.TrimSpace(l), ":"); len(f) >= 3 && f[0] == grp {
				gid, ok = number32(f[2])
				break
			}
		}
		if !ok {
			return u, bad(grp, "/etc/group")
		}
		u.GID = gid
		return u, nil
	}
	u.Groups = memberships(login, group, u.GID)
	return u, nil
}

// memberships lists the groups that name the user; the kernel takes 65536, nobody needs more than 256.
func memberships(login, group string, primary uint32) []uint32 {
	var out []uint32
	if login == "" {
		return nil
	}
	for l := range strings.Lines(group) {
		f := strings.Split(strings.TrimSpace(l), ":")
		if len(f) < 4 {
			continue
		}
		gid, ok := number32(f[2])
		for _, m := range strings.Split(f[3], ",") {
			if ok && m == login && gid != primary && len(out) < 256 {
				out = append(out, gid)
				break
			}
		}
	}
	return out
}

func number32(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < 1<<32-1
}
