/**
 * Markup as tagged templates, and components that stay as they are while their input is the same.
 * A conversation of a thousand messages is redrawn on every event, so a bubble that did not change must cost nothing.
 */
import htm from "htm"
import { Component, h } from "preact"

export const html = htm.bind(h)

const isSame = (a, b) => {
  const keys = Object.keys(a)
  return keys.length === Object.keys(b).length && keys.every((key) => Object.is(a[key], b[key]))
}

export const memo = (view) =>
  class extends Component {
    shouldComponentUpdate(next) {
      return !isSame(this.props, next)
    }
    render(props) {
      return h(view, props)
    }
  }
