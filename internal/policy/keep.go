package policy

// Keep answers what a policy keeps beside the view under a key, made when it is first
// asked for. It lives as long as the view and is used by the view's goroutine only:
// for what a policy counts over the whole pool and brings up to date by Changes.
func (v *View) Keep(key any, made func() any) any {
	k, ok := v.kept[key]
	if !ok {
		k = made()
		if v.kept == nil {
			v.kept = map[any]any{}
		}
		v.kept[key] = k
	}
	return k
}

// View is the view the node is in; nil for one made alone.
func (n *Node) View() *View { return n.view }
