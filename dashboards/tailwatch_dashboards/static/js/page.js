// Pages without data: only the theme switch.
import { startThemeSwitch } from "./theme-switch.js";

startThemeSwitch();
